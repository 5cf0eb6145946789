"""Pre-alignment: bringing each case into the canonical frame before the network sees it.

Every case gets one frame, so that the cost grows with cases and not with pairs; a pair's pre-alignment is the
composition of the two frames.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from biasreg.core.dataset import Case
from biasreg.core.geometry import Geometry, apply_affine
from biasreg.core.image_io import Image, read_image, read_labels
from biasreg.planning.fingerprint import AlignmentScores, index_corners, world_box
from biasreg.planning.foreground import bounding_box, foreground_mask
from biasreg.preprocessing.affine_registration import CoarseImage, register_coarse
from biasreg.preprocessing.resampling import labels_to_canonical, shrink, to_canonical

logger = logging.getLogger(__name__)

# Affine registration works with about this many voxels in the box around the fixed anatomy: measured on three datasets,
# more take longer and gain nothing, and fewer lose small structures.
COARSE_VOXELS = 40**3
INTENSITY_PERCENTILES = (1, 99)
SCORE_VOXELS_PER_SIDE = 48  # scores are counted on a grid of about this many voxels along the longest side
SCORE_BINS = 16


class _Anatomy(NamedTuple):
    """Where an image shows anatomy: its mask, and centre and sides of the world-aligned box around it (RAS mm)."""

    mask: np.ndarray
    center: np.ndarray
    extent_mm: np.ndarray


def foreground_center(image: Image, modality: str) -> np.ndarray:
    """Find the centre of the box around the anatomy.

    Args:
        image: The image.
        modality: Its modality.

    Returns:
        (3,) world coordinates, RAS mm.
    """
    return _anatomy(image, modality).center


def translation(offset: Sequence[float] | np.ndarray) -> np.ndarray:
    """Build the (4, 4) matrix of a shift.

    Args:
        offset: (3,) mm.

    Returns:
        The matrix.
    """
    matrix = np.eye(4)
    matrix[:3, 3] = offset
    return matrix


def register_affine(fixed: Image, moving: Image, modalities: tuple[str, str]) -> np.ndarray:
    """Register two images by an affine map: mutual information of the anatomy that both show.

    Both images are first sampled on coarse isotropic grids. The foreground centres are kept, with a notice, if nothing
    plausible is better. The same images give the same matrix, bit by bit.

    Args:
        fixed: The fixed image.
        moving: The moving image.
        modalities: Modality of the fixed and of the moving image.

    Returns:
        (4, 4) matrix that maps fixed world points (RAS mm) to moving world points.
    """
    anatomies = [_anatomy(image, name) for image, name in zip((fixed, moving), modalities, strict=True)]
    # A moving image that shows much more than the fixed one must not become huge.
    volume = max(anatomies[0].extent_mm.prod(), anatomies[1].extent_mm.prod() / 8)
    spacing = _coarse_spacing(volume, fixed.geometry)
    coarse = [_coarse_image(image, found, spacing) for image, found in zip((fixed, moving), anatomies, strict=True)]
    matrix = register_coarse(*coarse)
    if matrix is None:
        logger.warning("affine registration did not improve on aligned centres; the centres are kept")
        matrix = np.eye(4)
    return translation(anatomies[1].center) @ matrix @ translation(-anatomies[0].center)


def reference_image(image: Image, modality: str) -> Image:
    """Bring the case that all others are aligned to into the canonical frame, as finely as alignment makes use of.

    Its grid is only shifted, and where it is fine whole blocks of voxels are averaged: anything else would blur the
    border of masked anatomy, and alignment would be worse than it was measured.

    Args:
        image: First channel of the reference case.
        modality: Its modality.

    Returns:
        The whole image; the centre of its foreground is at the origin.
    """
    anatomy = _anatomy(image, modality)
    array, grid = shrink(image.array, image.geometry, _coarse_spacing(anatomy.extent_mm.prod(), image.geometry) / 2)
    return Image(array, Geometry.from_affine(translation(-anatomy.center) @ grid.affine, grid.shape))


def measure_alignment(reference: Case, case: Case) -> AlignmentScores:
    """Score how well a case lies on another one without pre-alignment, by centres, and by affine registration.

    Args:
        reference: The case that is aligned to.
        case: The case.

    Returns:
        The three scores: mean Dice of the labels that both show, or without labels how well the intensities of one tell
        those of the other (Linfoot's informational correlation, 0 to 1).
    """
    fixed, moving = read_image(reference.images[0]), read_image(case.images[0])
    modalities = (reference.modality, case.modality)
    centers = [foreground_center(image, name) for image, name in zip((fixed, moving), modalities, strict=True)]
    matrices = {
        "none": np.eye(4),
        "center": translation(centers[1] - centers[0]),
        "affine": register_affine(fixed, moving, modalities),
    }
    if reference.labels and case.labels:
        fixed, moving = read_labels(reference.labels), read_labels(case.labels)
        scores = {name: label_score(fixed, moving, matrix) for name, matrix in matrices.items()}
    else:
        scores = {name: intensity_score(fixed, moving, matrix) for name, matrix in matrices.items()}
    return AlignmentScores(case=case.identifier, reference=reference.identifier, **scores)


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


def _anatomy(image: Image, modality: str) -> _Anatomy:
    mask = foreground_mask(image.array, modality)
    center, extent = world_box(image.geometry, bounding_box(mask))
    return _Anatomy(mask, np.array(center), np.array(extent))


def _coarse_spacing(volume_mm3: float, geometry: Geometry) -> float:
    return max(float(np.cbrt(volume_mm3 / COARSE_VOXELS)), min(geometry.spacing))


def _coarse_image(image: Image, anatomy: _Anatomy, spacing: float) -> CoarseImage:
    """Sample an image around the centre of its anatomy, intensities clipped to [0, 1]."""
    low, high = np.percentile(image.array[anatomy.mask], INTENSITY_PERCENTILES)
    grid = Geometry.centered(_grid_shape(anatomy.extent_mm + 4 * spacing, spacing), (spacing,) * 3)
    scaled = np.clip((image.array - low) / max(high - low, 1e-12), 0, 1).astype(np.float32)
    array, inside = (
        to_canonical(*shrink(part, image.geometry, spacing), grid, translation(anatomy.center), fill=0.0)
        for part in (scaled, anatomy.mask)
    )
    return CoarseImage(array, _without_holes(inside > 0.5), grid)


def _without_holes(mask: np.ndarray) -> np.ndarray:
    """Fill what is enclosed in a slice along any axis, such as lungs: air inside the anatomy is part of it."""
    filled = mask.copy()
    for axis in range(3):
        slices = [ndimage.binary_fill_holes(part) for part in np.moveaxis(mask, axis, 0)]
        filled |= np.stack(slices, axis=axis)
    return filled


def _score_grid(points: np.ndarray, geometry: Geometry) -> tuple[Geometry, np.ndarray]:
    """Make a grid that holds world points, no finer than an image's, and its frame (canonical mm to the world)."""
    low, high = points.min(axis=0), points.max(axis=0)
    spacing = max(float((high - low).max()) / SCORE_VOXELS_PER_SIDE, min(geometry.spacing))
    return Geometry.centered(_grid_shape(high - low, spacing), (spacing,) * 3), translation((low + high) / 2)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Replace intensities by the share of voxels below, so that bins are filled evenly whatever the scale."""
    flat = values.ravel()
    ranks: np.ndarray = np.searchsorted(np.sort(flat), flat) / flat.size
    return ranks


def _grid_shape(extent_mm: np.ndarray, spacing: float) -> tuple[int, int, int]:
    x, y, z = (int(size) for size in np.maximum(np.ceil(extent_mm / spacing - 1e-6), 8))
    return x, y, z
