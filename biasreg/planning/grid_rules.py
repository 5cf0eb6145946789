"""The rules of the canonical grid: each a pure function from facts to one decision and its reason."""

from collections.abc import Sequence

import nibabel
import numpy as np

from biasreg.core.geometry import Geometry
from biasreg.planning.decision import Decision

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]

ANISOTROPY_THRESHOLD = 3.0  # nnU-Net's
COARSENING_STEP = 1.02
EXTENT_PERCENTILE = 95.0
# The largest residual displacement expected after pre-alignment, as a fraction of the anatomy's extent: room for the
# moving anatomy at each side of the grid.
MARGIN_FRACTION = 0.04
# The deepest features must still tell left from right and top from bottom.
SMALLEST_DEEPEST_SIDE = 3


def world_spacing(geometry: Geometry) -> Triple:
    """Find a grid's spacing along the world's axes.

    Args:
        geometry: The grid.

    Returns:
        Spacing in mm along x, y, z, each from the array axis that runs along that world axis, or closest to it.
    """
    world_axes = nibabel.io_orientation(geometry.affine)[:, 0]  # of each array axis, no two alike
    x, y, z = (geometry.spacing[axis] for axis in np.argsort(world_axes))
    return x, y, z


def choose_field_of_view(extents_mm: Sequence[Triple]) -> Decision[Triple]:
    """Choose the field of view of the canonical grid: the 95th percentile of the anatomy's extents, plus a margin.

    Registration needs the whole field of view at once, unlike segmentation; the percentile keeps one odd case from
    dictating the grid of all others.

    Args:
        extents_mm: Foreground extent of each case along x, y, z in mm.

    Returns:
        Side lengths in mm.
    """
    base = np.percentile(np.array(extents_mm), EXTENT_PERCENTILE, axis=0)
    x, y, z = (float(side) for side in base * (1 + 2 * MARGIN_FRACTION))
    larger = sum(1 for extent in extents_mm if any(side > limit for side, limit in zip(extent, (x, y, z), strict=True)))
    why = (
        f"the 95th percentile of the anatomy's extent and {100 * MARGIN_FRACTION:.0f} % margin at each side; "
        f"{larger} of {len(extents_mm)} cases are larger"
    )
    return Decision((x, y, z), why)


def choose_spacing(
    spacings: Sequence[Triple], field_of_view_mm: Triple, divisor: int, budget_voxels: int
) -> Decision[Triple]:
    """Choose the voxel size: nnU-Net's median and anisotropy rule, then coarser until the field of view fits.

    The finest axis is coarsened first, so that voxels become isotropic before they become large. Never finer than the
    data.

    Args:
        spacings: Spacing of each case along x, y, z in mm.
        field_of_view_mm: Field of view that must fit.
        divisor: The grid's sides are padded to multiples of this.
        budget_voxels: Number of voxels that the device can train on.

    Returns:
        Spacing in mm along x, y, z.

    Source:
        Isensee et al. 2021 (doi:10.1038/s41592-020-01008-z) for the median and anisotropy rule.
    """
    data = np.array(spacings)
    spacing = np.median(data, axis=0)
    worst = int(spacing.argmax())
    why = "median spacing of the cases"
    if spacing[worst] / spacing.min() >= ANISOTROPY_THRESHOLD:
        finer = np.percentile(data[:, worst], 10)
        spacing[worst] = max(finer, np.delete(spacing, worst).max())
        why += f", the 10th percentile along the coarse axis {'xyz'[worst]}"
    started = spacing.copy()
    while np.prod(_padded_shape(field_of_view_mm, _rounded_up(spacing), divisor)) > budget_voxels:
        finest = spacing <= spacing.min() * COARSENING_STEP
        spacing[finest] *= COARSENING_STEP
    if (spacing > started).any():
        why += f", coarsened from {_millimetres(started)} until the field of view fits {budget_voxels} voxels"
    x, y, z = (float(value) for value in _rounded_up(spacing))
    return Decision((x, y, z), why)


def is_coarser(spacing: Triple, spacings: Sequence[Triple]) -> bool:
    """Tell whether a planned voxel is larger than those of the data, by more than rounding.

    Args:
        spacing: Planned spacing in mm along x, y, z.
        spacings: Spacing of each case, likewise.

    Returns:
        True if it is coarser than their median along any axis.
    """
    return bool((np.array(spacing) > np.median(spacings, axis=0) * np.sqrt(COARSENING_STEP)).any())


def choose_stages(field_of_view_mm: Triple, spacing: Triple, max_stages: int) -> Decision[int]:
    """Choose the number of encoder stages: as many as leave three voxels along each side of the deepest features.

    Args:
        field_of_view_mm: Side lengths of the grid in mm.
        spacing: Voxel size in mm.
        max_stages: Largest number for this device.

    Returns:
        Number of stages, at least 1.
    """
    smallest = min(side / step for side, step in zip(field_of_view_mm, spacing, strict=True))
    stages = int(np.floor(np.log2(max(smallest / SMALLEST_DEEPEST_SIDE, 4)))) - 1
    chosen = max(1, min(stages, max_stages))
    left = smallest / 2 ** (chosen + 1)
    why = f"the smallest side has {smallest:.0f} voxels, so that {chosen} stage(s) leave {left:.1f}"
    return Decision(chosen, why + (" (more would not fit the device)" if stages > max_stages else ""))


def choose_patch_size(field_of_view_mm: Triple, spacing: Triple, divisor: int) -> Decision[Shape]:
    """Choose the grid: the whole field of view, padded to a multiple of the network's divisor.

    Args:
        field_of_view_mm: Side lengths in mm.
        spacing: Voxel size in mm.
        divisor: Divisor of the network's input.

    Returns:
        Shape in voxels.
    """
    shape = _padded_shape(field_of_view_mm, np.array(spacing), divisor)
    return Decision(shape, f"the whole field of view, padded to multiples of {divisor}")


def _rounded_up(spacing: np.ndarray) -> np.ndarray:
    """Round to five digits, never to a finer voxel; what is a header's round-off away from a rounder number gets it."""
    unit = 10.0 ** (np.floor(np.log10(spacing)) - 4)
    rounded: np.ndarray = np.ceil(spacing / unit - 0.01) * unit
    return rounded.round(12)


def _padded_shape(field_of_view_mm: Triple, spacing: np.ndarray, divisor: int) -> Shape:
    x, y, z = (int(count) * divisor for count in np.ceil(np.array(field_of_view_mm) / spacing / divisor - 1e-6))
    return x, y, z


def _millimetres(values: np.ndarray) -> str:
    return "×".join(f"{value:.4g}" for value in values) + " mm"
