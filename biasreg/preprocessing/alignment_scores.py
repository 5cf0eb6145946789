"""How far cases lie from each other, before and after pre-alignment: what plans are chosen by."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from biasreg.core.dataset import Case
from biasreg.core.geometry import Geometry, apply_affine, index_corners
from biasreg.core.image_io import Image, read_image, read_labels
from biasreg.planning.fingerprint_records import DISTANCE_PERCENTILES, GIVEN, Misalignment, PairFingerprint, Triple
from biasreg.planning.foreground import bounding_box
from biasreg.preprocessing.prealign import (
    foreground_center,
    grid_shape,
    make_reference,
    refine_affine,
    register_affine,
    register_rigid,
    translation,
)
from biasreg.preprocessing.resampling import field_of_view, labels_to_canonical, to_canonical

SCORE_VOXELS_PER_SIDE = 48  # scores are counted on a grid of about this many voxels along the longest side
SCORE_BINS = 16


def measure_alignment(fixed: Case, moving: Case, reference: Case | None) -> PairFingerprint:
    """Measure how far one case lies from another without pre-alignment, and under each way of it.

    Args:
        fixed: The case that the other one is laid on.
        moving: The other one.
        reference: The case that affine maps lead to; None measures without them.

    Returns:
        The facts; without labels the score tells how well the intensities of one tell those of the other (Linfoot's
        informational correlation, 0 to 1), and distances are unknown.
    """
    images = {case.identifier: read_image(case.images[0]) for case in (fixed, moving)}
    centers = [foreground_center(images[case.identifier], case.modality) for case in (fixed, moving)]
    frames = {"none": [np.eye(4)] * 2, "center": [translation(center) for center in centers]}
    if reference is not None:
        frames |= _registered_frames(reference, [(case, images[case.identifier]) for case in (fixed, moving)])
    if fixed.given or moving.given:
        # Both frames start from one anchor, for listed pairs are connected parts of one graph.
        frames[GIVEN] = [case.given.matrix if case.given else np.eye(4) for case in (fixed, moving)]
    matrices = {name: of_moving @ np.linalg.inv(of_fixed) for name, (of_fixed, of_moving) in frames.items()}
    labels = tuple(read_labels(case.labels) for case in (fixed, moving) if case.labels)
    if len(labels) == 2 and (np.intersect1d(labels[0].array, labels[1].array) > 0).any():
        alignments = {name: label_misalignment(labels[0], labels[1], matrix) for name, matrix in matrices.items()}
    else:
        pair = images[fixed.identifier], images[moving.identifier]
        alignments = {name: Misalignment(intensity_score(*pair, matrix)) for name, matrix in matrices.items()}
    grids = images[moving.identifier].geometry, images[fixed.identifier].geometry
    return PairFingerprint(
        moving=moving.identifier,
        fixed=fixed.identifier,
        overlap=float(field_of_view(*grids, np.eye(4)).mean()),
        center_offset_mm=float(np.linalg.norm(centers[1] - centers[0])),
        alignments=alignments,
    )


def _registered_frames(reference: Case, cases: Sequence[tuple[Case, Image]]) -> dict[str, list[np.ndarray]]:
    """Find the frames of cases as later steps do, by each way of registration to the reference."""
    image = read_image(reference.images[0])
    labelled = read_labels(reference.labels).array > 0 if reference.labels else None
    hub = make_reference(image, labelled, reference.modality)
    ways = ("rigid", "affine") if hub.focus is None else ("rigid", "affine", "affine_focus")
    frames: dict[str, list[np.ndarray]] = {way: [] for way in ways}
    for case, own in cases:
        if case.identifier == reference.identifier:
            found = dict.fromkeys(ways, translation(foreground_center(image, reference.modality)))
        else:
            pair = hub.image, own, case.modality
            found = {"rigid": register_rigid(*pair)}
            found["affine"] = register_affine(*pair, found["rigid"])
            if hub.focus is not None:
                found["affine_focus"] = refine_affine(*pair, hub.focus, found["rigid"])
        for way in ways:
            frames[way].append(found[way])
    return frames


def label_misalignment(fixed: Image, moving: Image, matrix: np.ndarray) -> Misalignment:
    """Measure the overlap and the distances of the labels that two label maps share.

    Args:
        fixed: Fixed label map.
        moving: Moving label map.
        matrix: (4, 4), fixed world (RAS mm) to moving world.

    Returns:
        Mean Dice, and percentiles of the distances between centroids and between surfaces; Dice 0 and no distances
        without a common label.
    """
    values = [int(value) for value in np.intersect1d(fixed.array, moving.array) if value > 0]
    if not values:
        return Misalignment(0.0)
    boxes = [index_corners(image.geometry, bounding_box(image.array > 0)) for image in (fixed, moving)]
    corners = np.concatenate([boxes[0], apply_affine(np.linalg.inv(matrix), boxes[1])])
    grid, frame = _score_grid(corners, fixed.geometry)
    first = labels_to_canonical(fixed.array, fixed.geometry, grid, frame, values)
    second = labels_to_canonical(moving.array, moving.geometry, grid, matrix @ frame, values)
    pairs = [(first == index, second == index) for index in range(1, len(values) + 1)]
    dice = [2 * int((a & b).sum()) / max(int(a.sum()) + int(b.sum()), 1) for a, b in pairs]
    # What one of the two images does not reach is no displacement: a spinal cord ends where the scan does.
    reached = field_of_view(fixed.geometry, grid, frame) & field_of_view(moving.geometry, grid, matrix @ frame)
    both = [(a & reached, b & reached) for a, b in pairs]
    seen = [(a, b) for a, b in both if a.any() and b.any()]  # what is thinner than a voxel may be lost
    return Misalignment(
        score=float(np.mean(dice)),
        centroid_mm=_percentiles([_centroid_distance(a, b) * grid.spacing[0] for a, b in seen]),
        surface_mm=_percentiles([distance * grid.spacing[0] for a, b in seen for distance in _surface_distances(a, b)]),
    )


def _centroid_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Distance between the centroids of two masks in voxels."""
    centroids = [np.array(ndimage.center_of_mass(mask)) for mask in (first, second)]
    return float(np.linalg.norm(centroids[1] - centroids[0]))


def _surface_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Distances in voxels from each surface voxel of one mask to the surface of the other, both ways."""
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (first, second)]
    maps = [ndimage.distance_transform_edt(~surface) for surface in surfaces]
    return np.concatenate([maps[1][surfaces[0]], maps[0][surfaces[1]]])


def _percentiles(values: Sequence[float]) -> Triple | None:
    if not len(values):
        return None
    half, most, all_ = (round(float(value), 3) for value in np.percentile(values, DISTANCE_PERCENTILES))
    return half, most, all_


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
