"""The choice of the case that all others are aligned to, by how well cases lie on each other through it."""

import itertools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from biasreg.core.dataset import Case
from biasreg.core.image_io import Image, read_image, read_labels
from biasreg.core.parallel import map_cases
from biasreg.planning.alignment_sample import by_typicality
from biasreg.planning.fingerprint_records import CaseFingerprint
from biasreg.preprocessing.alignment_scores import intensity_score
from biasreg.preprocessing.prealign import (
    Reference,
    foreground_center,
    make_reference,
    refine_affine,
    register_affine,
    register_rigid,
    translation,
)

logger = logging.getLogger(__name__)

# Measured on 23 head and neck CTs: of the six cases with the most typical extents, the pairs of eight cases pick one
# through which all 253 pairs reach a Dice of 0.48; through the most typical one 0.47, the best 0.49, the worst 0.40.
REFERENCE_CANDIDATES = 6
REFERENCE_SAMPLE = 8

PairScore = Callable[[Image, Image, np.ndarray], float]


class ReferenceChoice(NamedTuple):
    """Which case the others are aligned to.

    Attributes:
        reference: Its identifier.
        scores: Mean score of the sample's pairs by identifier of each candidate; empty where there was no choice.
    """

    reference: str
    scores: dict[str, float]


def choose_reference(facts: Sequence[CaseFingerprint], cases: Sequence[Case], executor: Executor) -> str:
    """Choose the case that all others may be aligned to: of the most typical ones the one that serves pairs best.

    Args:
        facts: Facts per case.
        cases: The same cases.
        executor: Where candidates are measured.

    Returns:
        Its identifier.
    """
    by_name = {case.identifier: case for case in cases}
    labelled = [case for case in cases if case.labels]
    candidates = [by_name[name] for name in by_typicality(facts)]
    if len(labelled) > 1:
        candidates = [case for case in candidates if case.labels]
    sample = labelled if len(labelled) > 1 else list(cases)
    choice = choose_reference_by_alignment(candidates, sample, executor, measure_reference)
    for name, score in choice.scores.items():
        logger.info("reference case %s: mean score of the sample's pairs %.3f", name, score)
    return choice.reference


def choose_reference_by_alignment(
    candidates: Sequence[Case],
    sample: Sequence[Case],
    executor: Executor,
    measure: Callable[[Case, Sequence[Case]], float],
) -> ReferenceChoice:
    """Choose the candidate through which the pairs of a sample lie on each other best.

    Pairs are the same for all candidates, so that one whose own structures are easy to hit has no advantage.

    Args:
        candidates: Cases to choose from, the most typical first: of equal scores the first wins. At most
            `REFERENCE_CANDIDATES` are looked at.
        sample: Cases that the pairs are made of; at most `REFERENCE_SAMPLE`, evenly spaced, are looked at.
        executor: Where candidates are measured.
        measure: `measure_reference`, or another score of a candidate and a sample.

    Returns:
        The choice; the first candidate where the sample has no pair.
    """
    looked_at = list(candidates)[:REFERENCE_CANDIDATES]
    indices = np.unique(np.linspace(0, len(sample) - 1, min(REFERENCE_SAMPLE, len(sample))).round().astype(int))
    cases = [sample[index] for index in indices]
    if len(looked_at) < 2 or len(cases) < 2:
        return ReferenceChoice(looked_at[0].identifier, {})
    arguments = {case.identifier: (case, cases) for case in looked_at}
    scores = map_cases(measure, arguments, executor, "reference")
    return ReferenceChoice(max(scores, key=lambda name: round(scores[name], 6)), scores)


def measure_reference(candidate: Case, sample: Sequence[Case]) -> float:
    """Measure how well cases lie on each other when each is aligned to a candidate as later steps would.

    Args:
        candidate: The case that the others are aligned to; around its labels if it has any.
        sample: The other cases, labelled or not; it may be one of them.

    Returns:
        Mean score of all pairs of the sample, 0 to 1: Dice of their labels where both have some, else how well
        intensities tell each other.
    """
    image = read_image(candidate.images[0])
    labelled = read_labels(candidate.labels).array > 0 if candidate.labels else None
    reference = make_reference(image, labelled, candidate.modality)
    by_labels = all(case.labels for case in sample)
    frames, shown = {}, {}
    for case in sample:
        own = read_image(case.images[0])
        if case.identifier == candidate.identifier:
            frames[case.identifier] = translation(foreground_center(image, candidate.modality))
        else:
            frames[case.identifier] = _aligned(reference, own, case.modality)
        shown[case.identifier] = read_labels(case.labels) if by_labels and case.labels else own
    score: PairScore = label_overlap if by_labels else intensity_score
    pairs = itertools.combinations(shown, 2)
    return float(np.mean([score(shown[a], shown[b], frames[b] @ np.linalg.inv(frames[a])) for a, b in pairs]))


def label_overlap(fixed: Image, moving: Image, matrix: np.ndarray) -> float:
    """Measure the mean Dice of the labels that two label maps share, voxels taken as they are.

    Args:
        fixed: Fixed label map.
        moving: Moving label map.
        matrix: (4, 4), fixed world (RAS mm) to moving world.

    Returns:
        0 to 1; 0 without a common label.
    """
    indices = np.linalg.inv(moving.geometry.affine) @ matrix @ fixed.geometry.affine
    shape = fixed.array.shape
    warped = ndimage.affine_transform(moving.array, indices[:3, :3], indices[:3, 3], output_shape=shape, order=0)
    size = int(max(fixed.array.max(), moving.array.max())) + 1
    both, first, second = (
        np.bincount(labels.ravel(), minlength=size).astype(float)
        for labels in (fixed.array[fixed.array == warped], fixed.array, warped)
    )
    shared = np.intersect1d(fixed.array, moving.array)
    shared = shared[shared > 0]
    return float((2 * both[shared] / (first + second)[shared]).mean()) if len(shared) else 0.0


def _aligned(reference: Reference, image: Image, modality: str) -> np.ndarray:
    rigid = register_rigid(reference.image, image, modality)
    if reference.focus is None:
        return register_affine(reference.image, image, modality, rigid)
    return refine_affine(reference.image, image, modality, reference.focus, rigid)
