"""Pre-alignment: bringing each case into the canonical frame before the network sees it.

Every case gets one frame, so that the cost grows with cases and not with pairs; a pair's pre-alignment is the
composition of the two frames.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from biasreg.core.geometry import Geometry, mask_box
from biasreg.core.image_io import Image
from biasreg.planning.foreground import foreground_mask
from biasreg.preprocessing.affine_registration import (
    CoarseImage,
    is_plausible,
    refine_coarse,
    register_affine_coarse,
    register_rigid_coarse,
)
from biasreg.preprocessing.coarse_image import Anatomy, find_anatomy, grid_shape, sample_box
from biasreg.preprocessing.resampling import shrink, to_canonical

__all__ = [
    "Reference",
    "foreground_center",
    "grid_shape",
    "make_reference",
    "refine_affine",
    "register_affine",
    "register_rigid",
    "translation",
]

# Registration works with about this many voxels in the box around the fixed anatomy: measured on three datasets, more
# take longer and gain nothing, and fewer lose small structures.
COARSE_VOXELS = 40**3
# What lies around a focus counts up to this part of its mean side; its grid has about this many voxels.
FOCUS_MARGIN = 0.1
FOCUS_VOXELS = 44**3
# A focus is searched from these shifts along the body's axis too, in parts of its height: scans are cut there, and
# shoulders on shoulders can hide that the heads are a few vertebrae apart (found on 1 of 22 head and neck CTs).
FOCUS_SHIFTS = (0.0, 0.2, -0.2)


class Reference(NamedTuple):
    """What all cases are aligned to.

    Attributes:
        image: The reference case in the canonical frame.
        focus: Share of each voxel, 0 to 1, that belongs to what alignment may be refined for; None without labels.
    """

    image: Image
    focus: np.ndarray | None


class _Pair(NamedTuple):
    """Two images on coarse grids around the centres of their anatomy."""

    anatomies: tuple[Anatomy, Anatomy]
    coarse: tuple[CoarseImage, CoarseImage]

    def to_world(self, matrix: np.ndarray) -> np.ndarray:
        """Turn a matrix between the grids' coordinates into one between the worlds."""
        return translation(self.anatomies[1].center) @ matrix @ translation(-self.anatomies[0].center)

    def to_grid(self, matrix: np.ndarray) -> np.ndarray:
        """The inverse of `to_world`."""
        return translation(-self.anatomies[1].center) @ matrix @ translation(self.anatomies[0].center)


def foreground_center(image: Image, modality: str) -> np.ndarray:
    """Find the centre of the box around the anatomy.

    Args:
        image: The image.
        modality: Its modality.

    Returns:
        (3,) world coordinates, RAS mm.
    """
    return np.array(mask_box(image.geometry, foreground_mask(image.array, modality))[0])


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


def joins_centers_only(frame: np.ndarray) -> bool:
    """Tell whether a map only moves: what registration gives where it found nothing better than aligned centres.

    Args:
        frame: (4, 4) matrix.

    Returns:
        Whether its linear part is the identity.
    """
    return np.array_equal(frame[:3, :3], np.eye(3))


def register_rigid(fixed: Image, moving: Image, modality: str) -> np.ndarray:
    """Register two images by a rigid map: mutual information of the anatomy that both show.

    Both images are first sampled on coarse isotropic grids. The foreground centres are kept if nothing plausible is
    better, see `joins_centers_only`. The same images give the same matrix, bit by bit.

    Args:
        fixed: The fixed image.
        moving: The moving image.
        modality: Modality of both; `mixed` where they differ.

    Returns:
        (4, 4) matrix that maps fixed world points (RAS mm) to moving world points.
    """
    pair = _coarse_pair(fixed, moving, modality)
    return pair.to_world(_rigid(pair))


def register_affine(fixed: Image, moving: Image, modality: str, start: np.ndarray | None = None) -> np.ndarray:
    """Register two images by an affine map: mutual information of the anatomy that both show.

    Where no affine map is plausible and better, the similarity map before it counts, then the rigid one.

    Args:
        fixed: The fixed image.
        moving: The moving image.
        modality: Modality of both; `mixed` where they differ.
        start: What `register_rigid` found for the same images; it is found here when None.

    Returns:
        (4, 4) matrix that maps fixed world points (RAS mm) to moving world points.
    """
    pair = _coarse_pair(fixed, moving, modality)
    rigid = _rigid(pair) if start is None else pair.to_grid(start)
    return pair.to_world(register_affine_coarse(*pair.coarse, rigid))


def refine_affine(fixed: Image, moving: Image, modality: str, focus: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Fit an affine map to a part of the anatomy, on a finer grid around it.

    What lies far from that part, such as the shoulders below a head, has no say.

    Args:
        fixed: The fixed image.
        moving: The moving image.
        modality: Modality of both; `mixed` where they differ.
        focus: Share of each voxel of the fixed grid, 0 to 1, that belongs to the part that matters.
        start: (4, 4) matrix that maps fixed world points (RAS mm) to moving world points; a rigid one by
            `register_rigid` is the best start, because a map of the whole anatomy need not fit a part of it.

    Returns:
        The map; the start where nothing plausible is better, or the focus is empty.
    """
    if not focus.any():
        return start
    center, extent = (np.array(value) for value in mask_box(fixed.geometry, focus > 0))
    margin = FOCUS_MARGIN * float(extent.mean())
    spacing = max(float(np.cbrt((extent + 2 * margin).prod() / FOCUS_VOXELS)), min(fixed.geometry.spacing))
    anatomies = [find_anatomy(image, modality) for image in (fixed, moving)]
    still = _around_focus(anatomies[0], focus, center, extent, spacing)
    # Sampled as the start lays it, the moving image is blurred no more than the fixed one.
    frame = start @ translation(center)
    shifts = [translation([0.0, 0.0, part * extent[2]]) for part in FOCUS_SHIFTS]
    reach = extent + 4 * margin + [0.0, 0.0, 2 * max(FOCUS_SHIFTS) * extent[2]]
    found = refine_coarse(still, sample_box(anatomies[1], frame, reach, spacing), shifts)
    refined = frame @ found @ translation(-center)
    return refined if is_plausible(refined) else start


def make_reference(
    image: Image, focus: np.ndarray | None, modality: str, center: Sequence[float] | np.ndarray | None = None
) -> Reference:
    """Bring the case that all others are aligned to into the canonical frame, as finely as alignment makes use of.

    Its grid is only shifted, and where it is fine whole blocks of voxels are averaged: anything else would blur the
    border of masked anatomy, and alignment would be worse than it was measured.

    Args:
        image: First channel of the reference case.
        focus: Boolean array on its grid, true for the part that alignment may be refined for, if there is one.
        modality: Its modality.
        center: World point (RAS mm) that becomes the canonical origin; the centre of the foreground when None.

    Returns:
        The whole image, its centre at the origin, and the focus on its grid.
    """
    middle, extent = mask_box(image.geometry, foreground_mask(image.array, modality))
    spacing = _coarse_spacing(float(np.prod(extent)), image.geometry) / 2
    array, grid = shrink(image.array, image.geometry, spacing)
    share = None if focus is None else shrink(focus, image.geometry, spacing)[0]
    origin = np.array(middle if center is None else center)
    return Reference(Image(array, Geometry.from_affine(translation(-origin) @ grid.affine, grid.shape)), share)


def _coarse_spacing(volume_mm3: float, geometry: Geometry) -> float:
    return max(float(np.cbrt(volume_mm3 / COARSE_VOXELS)), min(geometry.spacing))


def _coarse_pair(fixed: Image, moving: Image, modality: str) -> _Pair:
    anatomies = find_anatomy(fixed, modality), find_anatomy(moving, modality)
    # A moving image that shows much more than the fixed one must not become huge.
    volume = max(anatomies[0].extent_mm.prod(), anatomies[1].extent_mm.prod() / 8)
    spacing = _coarse_spacing(float(volume), fixed.geometry)
    still, moved = (
        sample_box(anatomy, translation(anatomy.center), anatomy.extent_mm, spacing) for anatomy in anatomies
    )
    return _Pair(anatomies, (still, moved))


def _rigid(pair: _Pair) -> np.ndarray:
    found = register_rigid_coarse(*pair.coarse)
    return np.eye(4) if found is None else found


def _around_focus(
    anatomy: Anatomy, focus: np.ndarray, center: np.ndarray, extent: np.ndarray, spacing: float
) -> CoarseImage:
    """Sample the fixed image around its focus; its masks end within the margin around that."""
    margin = FOCUS_MARGIN * float(extent.mean())
    still = sample_box(anatomy, translation(center), extent + 2 * margin, spacing)
    blocks = shrink(focus, anatomy.image.geometry, spacing)
    share = to_canonical(*blocks, still.grid, translation(center), fill=0.0)
    part = share > (0.5 if share.max() > 0.5 else 0)  # what is thinner than a voxel everywhere still counts
    near = ndimage.distance_transform_edt(~part) * spacing <= margin
    return still._replace(shown=still.shown & near, anatomy=still.anatomy & near)
