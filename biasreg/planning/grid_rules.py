"""The rules of the canonical grid: each a pure function from facts to one decision and its reason."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from biasreg.core.errors import PlansError
from biasreg.planning.decision import Decision

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]

ANISOTROPY_THRESHOLD = 3.0  # nnU-Net's
COARSENING_STEP = 1.02
EXTENT_PERCENTILE = 95.0
# The margin for anatomy that moves lies between these parts of the anatomy's side. Below, interpolation at the border
# would lose voxels; above, most of the grid would be margin.
MARGIN_BOUNDS = (0.04, 0.15)
# The deepest features must still tell left from right and top from bottom.
SMALLEST_DEEPEST_SIDE = 3
# An axis whose voxels are at least this many times as long as the shortest is halved later, as in nnU-Net.
POOLED_LATER = 2.0
FEWEST_HALVINGS = 2  # of an encoder with one stage
THIN_HALVINGS = 3  # an axis that allows fewer of them does not hold the others back
MOST_COARSENING = 1000.0
NAMED_CASES = 5


class Layout(NamedTuple):
    """A grid and its pyramid.

    Attributes:
        patch_size: Shape of the grid in voxels.
        strides: Factor along x, y, z from each level to the next coarser, finest first.
    """

    patch_size: Shape
    strides: tuple[Shape, ...]

    @property
    def is_isotropic(self) -> bool:
        """Whether all axes are halved at each level."""
        return all(step == (2, 2, 2) for step in self.strides)


def choose_field_of_view(
    extents_mm: Mapping[str, Triple], displacement_mm: float, what: str, reference: str | None = None
) -> Decision[Triple]:
    """Choose the field of view of the canonical grid: what both images show, and room for it to move.

    Registration needs the whole field of view at once, unlike segmentation. Cases that are aligned to a reference by an
    affine map become as large as that; of others the 95th percentile counts, which keeps one odd case from dictating
    the grid of all. Each of two images carries half of the displacement between them, so that the margin at each side
    is half of what is expected, within 4 and 15 % of the side.

    Args:
        extents_mm: Extent along x, y, z in mm of what each case shows in its frame, before any scaling.
        displacement_mm: Displacement that is expected between two cases in their frames.
        what: What the extents are of, for the reason.
        reference: The case that the others are scaled to; None if they keep their size.

    Returns:
        Side lengths in mm.
    """
    extents = np.array(list(extents_mm.values()))
    if reference is None:
        base = np.percentile(extents, EXTENT_PERCENTILE, axis=0)
    else:
        base = np.maximum(np.median(extents, axis=0), extents_mm[reference])
    margin = np.clip(displacement_mm / 2, MARGIN_BOUNDS[0] * base, MARGIN_BOUNDS[1] * base)
    x, y, z = (float(side) for side in base + 2 * margin)
    room = f"and a margin of {_millimetres(margin)} at each side for a displacement of {displacement_mm:.3g} mm"
    if reference is not None:
        return Decision((x, y, z), f"the extent of {what} of {reference}, or the median if larger, {room}")
    larger = [name for name, extent in extents_mm.items() if (np.array(extent) > (x, y, z)).any()]
    named = ", ".join(larger[:NAMED_CASES]) + (", …" if len(larger) > NAMED_CASES else "")
    why = f"the 95th percentile of the extent of {what}, {room}; {len(larger)} of {len(extents_mm)} cases are larger"
    return Decision((x, y, z), why + (f" ({named})" if named else ""))


def choose_spacing(spacings: Sequence[Triple]) -> Decision[Triple]:
    """Choose the voxel size that the data offer: nnU-Net's median and anisotropy rule.

    Args:
        spacings: Spacing of each case along x, y, z in mm.

    Returns:
        Spacing in mm along x, y, z.

    Source:
        Isensee et al. 2021 (doi:10.1038/s41592-020-01008-z). Deviation: an axis counts as coarse whatever its number of
        voxels.
    """
    data = np.array(spacings)
    spacing = np.median(data, axis=0)
    worst = int(spacing.argmax())
    why = "median spacing of the cases"
    others = float(np.delete(spacing, worst).max())
    if spacing[worst] > ANISOTROPY_THRESHOLD * others:
        finer = float(np.percentile(data[:, worst], 10))
        spacing[worst] = max(finer, others)
        taken = "10th percentile of the cases" if finer >= others else "next coarser axis"
        why += f", along the coarse axis {'xyz'[worst]} that of the {taken}"
    return Decision(_rounded_up(spacing), why)


def coarsen(spacing: Triple, fits: Callable[[Triple], bool], goal: str) -> Decision[Triple]:
    """Make voxels coarser until the device can train on the whole field of view.

    The finest axis is coarsened first, so that voxels become isotropic before they become large.

    Args:
        spacing: Spacing to start from, in mm along x, y, z.
        fits: Tells whether a spacing is coarse enough; true of any that is large.
        goal: What that means, for the reason.

    Returns:
        Spacing in mm, never finer than the start.

    Raises:
        PlansError: If not even voxels a thousand times as long are coarse enough.
    """
    steps, rounded = np.array(spacing), spacing
    while not fits(rounded):
        if steps.min() > MOST_COARSENING * min(spacing):
            raise PlansError(f"no grid is coarse enough that {goal} · plan for more memory (-gpu_memory_target)")
        steps[steps <= steps.min() * COARSENING_STEP] *= COARSENING_STEP
        rounded = _rounded_up(steps)
    if rounded == spacing:
        return Decision(spacing, "")
    return Decision(rounded, f"coarsened from {_millimetres(spacing)} until {goal}")


def is_coarser(spacing: Triple, spacings: Sequence[Triple]) -> bool:
    """Tell whether a planned voxel is larger than those of the data, by more than rounding.

    Args:
        spacing: Planned spacing in mm along x, y, z.
        spacings: Spacing of each case, likewise.

    Returns:
        True if it is coarser than their median along any axis.
    """
    return bool((np.array(spacing) > np.median(spacings, axis=0) * np.sqrt(COARSENING_STEP)).any())


def lay_out(field_of_view_mm: Triple, spacing: Triple, max_stages: int) -> Decision[Layout]:
    """Choose the pyramid and the grid: the whole field of view, padded to what the pyramid divides.

    Grids are halved while three voxels are left along each side of the deepest features. Where voxels are twice as long
    along one axis as along another, the long axis is halved only once the others have caught up, so that features
    become isotropic. An axis that allows fewer than three halvings does not hold the others back; where all axes allow
    three, they are halved alike, as a Swin encoder needs it.

    Args:
        field_of_view_mm: Side lengths in mm.
        spacing: Voxel size in mm.
        max_stages: Largest number of encoder stages for this device.

    Returns:
        The layout, with at least two halvings.
    """
    sides, steps = np.array(field_of_view_mm) / spacing, np.array(spacing)
    isotropic = steps.max() / steps.min() < POOLED_LATER and sides.min() >= SMALLEST_DEEPEST_SIDE * 2**THIN_HALVINGS
    strides: list[Shape] = []
    while len(strides) <= max_stages:
        can = sides / 2 >= SMALLEST_DEEPEST_SIDE
        if isotropic:
            halved = can.all(keepdims=True).repeat(3)
        else:
            halved = can & (steps < POOLED_LATER * steps[can].min(initial=np.inf))
        if not halved.any():
            break
        x, y, z = (2 if axis else 1 for axis in halved)
        strides.append((x, y, z))
        sides, steps = sides / strides[-1], steps * strides[-1]
    strides += [(2, 2, 2)] * (FEWEST_HALVINGS - len(strides))
    divisor = np.prod(strides, axis=0)
    x, y, z = (int(side) for side in np.ceil(np.array(field_of_view_mm) / spacing / divisor - 1e-6) * divisor)
    why = f"the whole field of view, padded to multiples of {_by(divisor)}; {len(strides)} halvings leave " + _by(
        np.array((x, y, z)) // divisor
    )
    layout = Layout((x, y, z), tuple(strides))
    return Decision(layout, why + ("" if layout.is_isotropic else "; long or short axes are halved less often"))


def rounded_spacing(spacing: Sequence[float]) -> Triple:
    """Round a spacing that a user gave, as planned ones are.

    Args:
        spacing: Three numbers in mm.

    Returns:
        The spacing, never finer.
    """
    return _rounded_up(np.array(spacing, dtype=float))


def _rounded_up(spacing: np.ndarray) -> Triple:
    """Round to five digits, never to a finer voxel; what is a header's round-off away from a rounder number gets it."""
    unit = 10.0 ** (np.floor(np.log10(spacing)) - 4)
    x, y, z = (float(value) for value in (np.ceil(spacing / unit - 0.01) * unit).round(12))
    return x, y, z


def _by(values: Sequence[int] | np.ndarray) -> str:
    return "×".join(str(int(value)) for value in values)


def _millimetres(values: Sequence[float] | np.ndarray) -> str:
    return "×".join(f"{value:.4g}" for value in values) + " mm"
