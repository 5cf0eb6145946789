"""Pre-alignment: bringing each case into the canonical frame before the network sees it.

Every case gets one frame, so that the cost grows with cases and not with pairs; a pair's pre-alignment is the
composition of the two frames.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from biasreg.core.geometry import Geometry, world_box
from biasreg.core.image_io import Image
from biasreg.planning.foreground import bounding_box, foreground_mask
from biasreg.preprocessing.affine_registration import CoarseImage, is_plausible_volume, refine_coarse, register_coarse
from biasreg.preprocessing.resampling import field_of_view, shrink, to_canonical

logger = logging.getLogger(__name__)

# Affine registration works with about this many voxels in the box around the fixed anatomy: measured on three datasets,
# more take longer and gain nothing, and fewer lose small structures.
COARSE_VOXELS = 40**3
INTENSITY_PERCENTILES = (1, 99)
# What lies around a focus counts up to this part of its mean side; its grid has about this many voxels.
FOCUS_MARGIN = 0.1
FOCUS_VOXELS = 44**3


class _Anatomy(NamedTuple):
    """Where an image shows anatomy: its mask, and centre and sides of the world-aligned box around it (RAS mm)."""

    mask: np.ndarray
    center: np.ndarray
    extent_mm: np.ndarray


class Reference(NamedTuple):
    """What all cases are aligned to.

    Attributes:
        image: The reference case in the canonical frame.
        focus: Share of each voxel, 0 to 1, that belongs to what alignment may be refined for; None without labels.
    """

    image: Image
    focus: np.ndarray | None


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


def register_affine(fixed: Image, moving: Image, modality: str) -> np.ndarray:
    """Register two images by an affine map: mutual information of the anatomy that both show.

    Both images are first sampled on coarse isotropic grids. The foreground centres are kept, with a notice, if nothing
    plausible is better. The same images give the same matrix, bit by bit.

    Args:
        fixed: The fixed image.
        moving: The moving image.
        modality: Modality of both; `mixed` where they differ.

    Returns:
        (4, 4) matrix that maps fixed world points (RAS mm) to moving world points.
    """
    anatomies = [_anatomy(image, modality) for image in (fixed, moving)]
    # A moving image that shows much more than the fixed one must not become huge.
    volume = max(anatomies[0].extent_mm.prod(), anatomies[1].extent_mm.prod() / 8)
    spacing = _coarse_spacing(volume, fixed.geometry)
    coarse = [_coarse_image(image, found, spacing) for image, found in zip((fixed, moving), anatomies, strict=True)]
    matrix = register_coarse(*coarse)
    if matrix is None:
        logger.warning("affine registration did not improve on aligned centres; the centres are kept")
        matrix = np.eye(4)
    return translation(anatomies[1].center) @ matrix @ translation(-anatomies[0].center)


def refine_affine(fixed: Image, moving: Image, modality: str, focus: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Improve an affine map for a part of the anatomy, on a finer grid around it.

    What lies far from that part, such as the shoulders below a head, no longer has a say.

    Args:
        fixed: The fixed image.
        moving: The moving image.
        modality: Modality of both; `mixed` where they differ.
        focus: Share of each voxel of the fixed grid, 0 to 1, that belongs to the part that matters.
        start: (4, 4) matrix that maps fixed world points (RAS mm) to moving world points.

    Returns:
        The improved matrix; the start where nothing plausible is better, or the focus is empty.
    """
    if not focus.any():
        return start
    center, extent = (np.array(value) for value in world_box(fixed.geometry, bounding_box(focus > 0)))
    margin = FOCUS_MARGIN * float(extent.mean())
    spacing = max(float(np.cbrt((extent + 2 * margin).prod() / FOCUS_VOXELS)), min(fixed.geometry.spacing))
    scaled = [_scaled(image, foreground_mask(image.array, modality)) for image in (fixed, moving)]
    # The start may have put anatomy beside the fixed grid that has to come onto it.
    still = _region(scaled[0], extent + 2 * margin, spacing, translation(center))
    moved = _region(scaled[1], extent + 6 * margin, spacing, start @ translation(center))
    share = _sample(Image(focus, fixed.geometry), still.grid, translation(center))
    part = share > (0.5 if share.max() > 0.5 else 0)  # what is thinner than a voxel everywhere still counts
    near = ndimage.distance_transform_edt(~part) * spacing <= margin
    found = refine_coarse(still._replace(mask=still.mask & near), moved)
    refined = start @ translation(center) @ found @ translation(-center)
    return refined if is_plausible_volume(refined) else start


def make_reference(image: Image, focus: np.ndarray | None, modality: str) -> Reference:
    """Bring the case that all others are aligned to into the canonical frame, as finely as alignment makes use of.

    Its grid is only shifted, and where it is fine whole blocks of voxels are averaged: anything else would blur the
    border of masked anatomy, and alignment would be worse than it was measured.

    Args:
        image: First channel of the reference case.
        focus: Boolean array on its grid, true for the part that alignment may be refined for, if there is one.
        modality: Its modality.

    Returns:
        The whole image, the centre of its foreground at the origin, and the focus on its grid.
    """
    anatomy = _anatomy(image, modality)
    spacing = _coarse_spacing(anatomy.extent_mm.prod(), image.geometry) / 2
    array, grid = shrink(image.array, image.geometry, spacing)
    share = None if focus is None else shrink(focus, image.geometry, spacing)[0]
    return Reference(Image(array, Geometry.from_affine(translation(-anatomy.center) @ grid.affine, grid.shape)), share)


def _anatomy(image: Image, modality: str) -> _Anatomy:
    mask = foreground_mask(image.array, modality)
    center, extent = world_box(image.geometry, bounding_box(mask))
    return _Anatomy(mask, np.array(center), np.array(extent))


def _coarse_spacing(volume_mm3: float, geometry: Geometry) -> float:
    return max(float(np.cbrt(volume_mm3 / COARSE_VOXELS)), min(geometry.spacing))


def _scaled(image: Image, mask: np.ndarray) -> Image:
    """Clip intensities to percentiles of the anatomy, and scale them to [0, 1]."""
    low, high = np.percentile(image.array[mask], INTENSITY_PERCENTILES)
    return Image(np.clip((image.array - low) / max(high - low, 1e-12), 0, 1).astype(np.float32), image.geometry)


def _coarse_image(image: Image, anatomy: _Anatomy, spacing: float) -> CoarseImage:
    """Sample an image around the centre of its anatomy; the mask is true where that is."""
    frame = translation(anatomy.center)
    coarse = _region(_scaled(image, anatomy.mask), anatomy.extent_mm + 4 * spacing, spacing, frame)
    inside = _sample(Image(anatomy.mask.astype(np.float32), image.geometry), coarse.grid, frame)
    return coarse._replace(mask=_without_holes(inside > 0.5))


def _region(image: Image, extent_mm: np.ndarray, spacing: float, frame: np.ndarray) -> CoarseImage:
    """Sample a scaled image around the origin of a frame; the mask is true inside its field of view."""
    grid = Geometry.centered(grid_shape(extent_mm, spacing), (spacing,) * 3)
    return CoarseImage(_sample(image, grid, frame), field_of_view(image.geometry, grid, frame), grid)


def _sample(image: Image, grid: Geometry, frame: np.ndarray) -> np.ndarray:
    return to_canonical(*shrink(image.array, image.geometry, grid.spacing[0]), grid, frame, fill=0.0)


def _without_holes(mask: np.ndarray) -> np.ndarray:
    """Fill what is enclosed in a slice along any axis, such as lungs: air inside the anatomy is part of it."""
    filled = mask.copy()
    for axis in range(3):
        slices = [ndimage.binary_fill_holes(part) for part in np.moveaxis(mask, axis, 0)]
        filled |= np.stack(slices, axis=axis)
    return filled


def grid_shape(extent_mm: np.ndarray, spacing: float) -> tuple[int, int, int]:
    """Number of voxels that cover an extent, at least 8 along each axis.

    Args:
        extent_mm: (3,) sides in mm.
        spacing: Side of a voxel in mm.

    Returns:
        Shape.
    """
    x, y, z = (int(size) for size in np.maximum(np.ceil(extent_mm / spacing - 1e-6), 8))
    return x, y, z
