"""Which case all others are aligned to, and which pairs the facts about alignment are measured on."""

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import TypeVar

import numpy as np

from biasreg.core.dataset import Case
from biasreg.core.dataset_json import DatasetJson
from biasreg.planning.fingerprint_records import CaseFingerprint

ALIGNMENT_SAMPLE = 8  # pairs that are aligned: a matter of seconds
Item = TypeVar("Item")


def most_typical(facts: Sequence[CaseFingerprint], cases: Sequence[Case] = (), executor: Executor | None = None) -> str:
    """Choose the most typical case as the one that all others may be aligned to.

    Args:
        facts: Facts per case.
        cases: Not looked at.
        executor: Not used.

    Returns:
        Its identifier.
    """
    return by_typicality(facts)[0]


def by_typicality(facts: Sequence[CaseFingerprint]) -> list[str]:
    """Order cases by how close their foreground's extents are (in log scale) to the median of all.

    Args:
        facts: Facts per case.

    Returns:
        Identifiers, the closest first, in alphabetical order where several are equally close. Cases with labels come
        first, because alignment to them can be measured by labels.
    """
    extents = np.log([case.foreground_extent_mm for case in facts])
    distance = np.abs(extents - np.median(extents, axis=0)).sum(axis=1).round(6)
    unlabelled = [not case.label_volumes_mm3 for case in facts]
    return [name for *_, name in sorted(zip(unlabelled, distance, (case.identifier for case in facts), strict=True))]


def sample_pairs(cases: Sequence[Case], reference: str, json: DatasetJson) -> list[tuple[Case, Case]]:
    """Choose the pairs that alignment is measured on, evenly spaced, those with labels first.

    Args:
        cases: All cases.
        reference: Identifier of the reference case.
        json: Says which pairs make sense.

    Returns:
        At most `ALIGNMENT_SAMPLE` pairs (fixed, moving): listed pairs where the dataset trains on them alone;
        within subjects each of a case with the first one of its subject; else of a case with the next one of another
        subject, the reference case left out where enough others are there: what is typical lies closer to all.
    """
    if json.pairing == "inter-subject":
        others = [case for case in cases if case.identifier != reference]
        pool = others if len(others) > 2 else list(cases)
        return _ring(_evenly_spaced([case for case in pool if case.labels] if _count_labelled(pool) > 1 else pool))
    if json.pairing == "listed":
        by_name = {case.identifier: case for case in cases}
        pairs = [(by_name[pair.fixed], by_name[pair.moving]) for pair in json.pairs]
    else:
        first: dict[str, Case] = {}
        for case in cases:
            first.setdefault(case.subject, case)
        pairs = [(first[case.subject], case) for case in cases if case is not first[case.subject]]
    return _evenly_spaced([pair for pair in pairs if pair[0].labels and pair[1].labels] or pairs)


def _count_labelled(cases: Sequence[Case]) -> int:
    return sum(1 for case in cases if case.labels)


def _ring(cases: Sequence[Case]) -> list[tuple[Case, Case]]:
    """Pair each case with the one after it, and the last with the first, if they are of different subjects."""
    pairs = zip(cases, [*cases[1:], *cases[:1]], strict=True)
    found = [(fixed, moving) for fixed, moving in pairs if fixed.subject != moving.subject]
    return found[:1] if len(cases) == 2 else found


def _evenly_spaced(items: Sequence[Item]) -> list[Item]:
    """Take at most `ALIGNMENT_SAMPLE`, the first and the last among them."""
    indices = np.unique(np.linspace(0, len(items) - 1, min(ALIGNMENT_SAMPLE, len(items))).round().astype(int))
    return [items[index] for index in indices]
