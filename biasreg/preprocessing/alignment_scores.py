"""How well cases lie on each other: what the choice of pre-alignment is measured by."""

from collections.abc import Sequence

import numpy as np

from biasreg.core.dataset import Case
from biasreg.core.geometry import Geometry, apply_affine, index_corners
from biasreg.core.image_io import Image, read_image, read_labels
from biasreg.planning.fingerprint import AlignmentScores
from biasreg.planning.foreground import bounding_box
from biasreg.preprocessing.prealign import (
    foreground_center,
    grid_shape,
    make_reference,
    refine_affine,
    register_affine,
    translation,
)
from biasreg.preprocessing.resampling import labels_to_canonical, to_canonical

SCORE_VOXELS_PER_SIDE = 48  # scores are counted on a grid of about this many voxels along the longest side
SCORE_BINS = 16


def measure_alignment(fixed: Case, moving: Case, reference: Case | None) -> AlignmentScores:
    """Score how well one case lies on another without pre-alignment, and under each way of it.

    Args:
        fixed: The case that the other one is laid on.
        moving: The other one.
        reference: The case that affine maps lead to; None measures without them.

    Returns:
        The scores: mean Dice of the labels that both show, or without labels how well the intensities of one tell
        those of the other (Linfoot's informational correlation, 0 to 1).
    """
    images = {case.identifier: read_image(case.images[0]) for case in (fixed, moving)}
    frames = {
        "none": [np.eye(4)] * 2,
        "center": [translation(foreground_center(images[c.identifier], c.modality)) for c in (fixed, moving)],
    }
    if reference is not None:
        frames |= _affine_frames(reference, [(case, images[case.identifier]) for case in (fixed, moving)])
    matrices = {name: of_moving @ np.linalg.inv(of_fixed) for name, (of_fixed, of_moving) in frames.items()}
    if fixed.labels and moving.labels:
        labels = read_labels(fixed.labels), read_labels(moving.labels)
        scores = {name: label_score(*labels, matrix) for name, matrix in matrices.items()}
    else:
        pair = images[fixed.identifier], images[moving.identifier]
        scores = {name: intensity_score(*pair, matrix) for name, matrix in matrices.items()}
    return AlignmentScores(
        case=moving.identifier,
        none=scores["none"],
        center=scores["center"],
        affine=scores.get("affine"),
        reference=fixed.identifier,
        focus=scores.get("focus"),
    )


def _affine_frames(reference: Case, cases: Sequence[tuple[Case, Image]]) -> dict[str, list[np.ndarray]]:
    """Find the frames of cases as later steps do, by affine maps to the reference and refined for its labels."""
    image = read_image(reference.images[0])
    labelled = read_labels(reference.labels).array > 0 if reference.labels else None
    hub = make_reference(image, labelled, reference.modality)
    affine, focus = [], []
    for case, own in cases:
        if case.identifier == reference.identifier:
            matrix = refined = translation(foreground_center(image, reference.modality))
        else:
            matrix = register_affine(hub.image, own, case.modality)
            refined = matrix if hub.focus is None else refine_affine(hub.image, own, case.modality, hub.focus, matrix)
        affine.append(matrix)
        focus.append(refined)
    return {"affine": affine} if hub.focus is None else {"affine": affine, "focus": focus}


def label_score(fixed: Image, moving: Image, matrix: np.ndarray) -> float:
    """Measure the mean Dice of the labels that two label maps share.

    Args:
        fixed: Fixed label map.
        moving: Moving label map.
        matrix: (4, 4), fixed world (RAS mm) to moving world.

    Returns:
        0 to 1; 0 without a common label.
    """
    values = [int(value) for value in np.intersect1d(fixed.array, moving.array) if value > 0]
    if not values:
        return 0.0
    boxes = [index_corners(image.geometry, bounding_box(image.array > 0)) for image in (fixed, moving)]
    corners = np.concatenate([boxes[0], apply_affine(np.linalg.inv(matrix), boxes[1])])
    grid, frame = _score_grid(corners, fixed.geometry)
    first = labels_to_canonical(fixed.array, fixed.geometry, grid, frame, values)
    second = labels_to_canonical(moving.array, moving.geometry, grid, matrix @ frame, values)
    scores = []
    for index in range(1, len(values) + 1):
        size = np.count_nonzero(first == index) + np.count_nonzero(second == index)
        scores.append(2 * np.count_nonzero((first == index) & (second == index)) / size if size else 0.0)
    return float(np.mean(scores))


def intensity_score(fixed: Image, moving: Image, matrix: np.ndarray) -> float:
    """Measure how well two images tell each other's intensities: √(1 − exp(−2 I)), I their mutual information.

    Of jointly Gaussian intensities it is the absolute correlation; it holds across modalities.

    Args:
        fixed: Fixed image.
        moving: Moving image.
        matrix: (4, 4), fixed world (RAS mm) to moving world.

    Returns:
        0 to 1.

    Source:
        Linfoot 1957, An informational measure of correlation (doi:10.1016/S0019-9958(57)90116-X).
    """
    whole = [(0, size) for size in fixed.geometry.shape]
    grid, frame = _score_grid(index_corners(fixed.geometry, whole), fixed.geometry)
    first = to_canonical(fixed.array, fixed.geometry, grid, frame, fill=float(fixed.array.min()))
    second = to_canonical(moving.array, moving.geometry, grid, matrix @ frame, fill=float(moving.array.min()))
    joint = np.histogram2d(_ranks(first), _ranks(second), bins=SCORE_BINS)[0] / first.size
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    information = float((joint[seen] * np.log(joint[seen] / apart[seen])).sum())
    return float(np.sqrt(max(0.0, 1 - np.exp(-2 * information))))


def _score_grid(points: np.ndarray, geometry: Geometry) -> tuple[Geometry, np.ndarray]:
    """Make a grid that holds world points, no finer than an image's, and its frame (canonical mm to the world)."""
    low, high = points.min(axis=0), points.max(axis=0)
    spacing = max(float((high - low).max()) / SCORE_VOXELS_PER_SIDE, min(geometry.spacing))
    return Geometry.centered(grid_shape(high - low, spacing), (spacing,) * 3), translation((low + high) / 2)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Replace intensities by the share of voxels below, so that bins are filled evenly whatever the scale."""
    flat = values.ravel()
    ranks: np.ndarray = np.searchsorted(np.sort(flat), flat) / flat.size
    return ranks
