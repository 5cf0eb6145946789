"""Images as registration sees them: the anatomy found, intensities scaled, sampled on coarse isotropic grids."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from biasreg.core.geometry import Geometry, apply_affine, mask_box
from biasreg.core.image_io import Image
from biasreg.planning.foreground import foreground_mask
from biasreg.preprocessing.affine_registration import CoarseImage
from biasreg.preprocessing.resampling import field_of_view, shrink, to_canonical

INTENSITY_PERCENTILES = (1, 99)
# Voxels beyond a box that are kept when an image is cut to it: linear interpolation and smoothing reach no further.
CUT_MARGIN = 3
# A coarse grid reaches this many voxels beyond a box on each side, so that what lies at its border is sampled whole.
BORDER = 2


class Anatomy(NamedTuple):
    """Where an image shows anatomy.

    Attributes:
        image: The image.
        mask: bool, shape of the image, true where the anatomy is.
        center: (3,) centre of the world-aligned box around it, RAS mm.
        extent_mm: (3,) sides of that box along the world's axes.
        window: Intensities that become 0 and 1.
    """

    image: Image
    mask: np.ndarray
    center: np.ndarray
    extent_mm: np.ndarray
    window: tuple[float, float]


def find_anatomy(image: Image, modality: str) -> Anatomy:
    """Find the anatomy in an image, and the window of its intensities.

    Args:
        image: The image.
        modality: Its modality.

    Returns:
        Where the anatomy is.
    """
    mask = foreground_mask(image.array, modality)
    center, extent = mask_box(image.geometry, mask)
    low, high = (float(value) for value in np.percentile(image.array[mask], INTENSITY_PERCENTILES))
    return Anatomy(image, mask, np.array(center), np.array(extent), (low, high))


def sample_box(anatomy: Anatomy, frame: np.ndarray, extent_mm: np.ndarray, spacing: float) -> CoarseImage:
    """Sample an image on an isotropic grid around the origin of a frame.

    Args:
        anatomy: The image and its anatomy.
        frame: (4, 4) from the grid's coordinates (mm) to the image's world, RAS mm.
        extent_mm: (3,) sides of the box that the grid covers, beside its border.
        spacing: Side of a voxel in mm.

    Returns:
        The coarse image, intensities clipped to the window and scaled to [0, 1].
    """
    geometry = anatomy.image.geometry
    grid = Geometry.centered(grid_shape(extent_mm + 2 * BORDER * spacing, spacing), (spacing,) * 3)
    part, cut = _cut(geometry, grid, frame, spacing)
    low, high = anatomy.window
    scaled = np.clip((anatomy.image.array[part].astype(np.float32) - low) / max(high - low, 1e-12), 0, 1)
    inside = to_canonical(*shrink(anatomy.mask[part], cut, spacing), grid, frame, fill=0.0)
    shown = field_of_view(geometry, grid, frame)
    array = to_canonical(*shrink(scaled, cut, spacing), grid, frame, fill=0.0)
    return CoarseImage(array, shown, _without_holes(inside > 0.5), grid)


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


def _cut(
    geometry: Geometry, grid: Geometry, frame: np.ndarray, spacing: float
) -> tuple[tuple[slice, slice, slice], Geometry]:
    """The part of an image's grid that a coarse grid reaches, with a margin: most of a scan is air around the body."""
    reached = apply_affine(np.linalg.inv(geometry.affine) @ frame, grid.corners)
    margin = np.ceil(CUT_MARGIN * spacing / np.array(geometry.spacing))
    size = np.array(geometry.shape)
    low = np.clip(np.floor(reached.min(axis=0) - margin), 0, size - 1).astype(int)
    high = np.clip(np.ceil(reached.max(axis=0) + margin) + 1, low + 1, size).astype(int)
    affine = geometry.affine.copy()
    affine[:3, 3] = apply_affine(geometry.affine, low)
    x, y, z = (slice(int(start), int(stop)) for start, stop in zip(low, high, strict=True))
    return (x, y, z), Geometry.from_affine(affine, high - low)


def _without_holes(mask: np.ndarray) -> np.ndarray:
    """Fill what is enclosed in a slice along any axis, such as lungs: air inside the anatomy is part of it."""
    filled = mask.copy()
    for axis in range(3):
        slices = [ndimage.binary_fill_holes(part) for part in np.moveaxis(mask, axis, 0)]
        filled |= np.stack(slices, axis=axis)
    return filled
