"""Which case all others are aligned to, and which pairs the facts about alignment are measured on."""

from collections.abc import Sequence

import numpy as np

from biasreg.core.dataset import Case
from biasreg.core.dataset_json import DatasetJson
from biasreg.planning.fingerprint_records import CaseFingerprint

ALIGNMENT_SAMPLE = 8  # pairs that are aligned: enough to tell a gain of 0.02 Dice from noise


def choose_reference(cases: Sequence[CaseFingerprint]) -> str:
    """Choose the case whose foreground extents are closest (in log scale) to the median of all.

    Args:
        cases: Facts per case.

    Returns:
        Its identifier; the first in alphabetical order when several are equally close. Cases with labels are preferred,
        because alignment to them can be measured by labels.
    """
    extents = np.log([case.foreground_extent_mm for case in cases])
    distance = np.abs(extents - np.median(extents, axis=0)).sum(axis=1).round(6)
    unlabelled = [not case.label_volumes_mm3 for case in cases]
    return min(zip(unlabelled, distance, (case.identifier for case in cases), strict=True))[2]


def sample_pairs(cases: Sequence[Case], reference: str, json: DatasetJson) -> list[tuple[Case, Case]]:
    """Choose the pairs that alignment is measured on, evenly spaced, those with labels first.

    Args:
        cases: All cases.
        reference: Identifier of the reference case.
        json: Says which pairs make sense.

    Returns:
        At most `ALIGNMENT_SAMPLE` pairs (fixed, moving): listed pairs where the dataset trains on them alone;
        within subjects each of a case with the first one of its subject; else of a case with the reference case.
    """
    by_name = {case.identifier: case for case in cases}
    if json.pairing == "listed":
        pairs = [(by_name[pair.fixed], by_name[pair.moving]) for pair in json.pairs]
    else:
        first: dict[str, Case] = {}
        for case in cases:
            first.setdefault(case.subject, case if json.pairing == "intra-subject" else by_name[reference])
        pairs = [(first[case.subject], case) for case in cases if case is not first[case.subject]]
    pool = [pair for pair in pairs if pair[0].labels and pair[1].labels] or pairs
    indices = np.unique(np.linspace(0, len(pool) - 1, min(ALIGNMENT_SAMPLE, len(pool))).round().astype(int))
    return [pool[index] for index in indices]
