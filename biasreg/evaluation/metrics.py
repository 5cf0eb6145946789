"""How well a pair was registered: overlap, surface distance, landmark error, and how regular the field is.

Arrays in, floats out; no files. `documentation/reference/metrics.md` defines each metric and its borders.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance
from numpy.typing import NDArray

from biasreg.core.geometry import Geometry, apply_affine
from biasreg.core.label_boxes import Box, label_boxes
from biasreg.core.points_io import Points
from biasreg.spatial import jacobian
from biasreg.spatial.native import displacement_to_voxels
from biasreg.spatial.warp import sample

HAUSDORFF_PERCENTILE = 95.0
FIT_VOXELS = 200_000  # a mean over so many is sure to far below a hundredth of its spread


class FieldMetrics(NamedTuple):
    """How regular the transform x → x + u(x) of one displacement field is, over its whole grid.

    Attributes:
        folding_percent: Share of voxels whose Jacobian determinant is not positive, 0 to 100.
        log_jacobian_std: Standard deviation of log det J over the voxels where det J > 0; None where there are none.
        learn2reg_log_jacobian_std: The same quantity by Learn2Reg's own definition (2 border voxels left out,
            log(clip(det J + 3))), only for comparison with its tables; None on grids with a side below 5 voxels.
    """

    folding_percent: float
    log_jacobian_std: float | None
    learn2reg_log_jacobian_std: float | None


class LandmarkErrors(NamedTuple):
    """Distances between corresponding landmarks.

    Attributes:
        names: Names found in both point sets, in the fixed set's order.
        errors_mm: One distance per name, mm.
        unmatched: Names found in one of the sets only.
    """

    names: tuple[str, ...]
    errors_mm: tuple[float, ...]
    unmatched: tuple[str, ...]


def dice_per_label(a: NDArray, b: NDArray, values: Sequence[int]) -> dict[int, float | None]:
    """Dice overlap of each label, 2·|A ∩ B| / (|A| + |B|).

    Args:
        a: Label map (X, Y, Z), integer.
        b: Label map (X, Y, Z), integer.
        values: Label values to compare.

    Returns:
        Dice in [0, 1] by label value: 0 where the label is in one map only, None where it is in neither.

    Raises:
        ValueError: The two maps differ in shape.

    Source: Dice 1945, doi:10.2307/1932409.
    """
    _check_same_shape(a, b)
    dice: dict[int, float | None] = {}
    for value in values:
        in_a, in_b = a == value, b == value
        total = np.count_nonzero(in_a) + np.count_nonzero(in_b)
        dice[value] = 2.0 * np.count_nonzero(in_a & in_b) / total if total else None
    return dice


def hd95_per_label(a: NDArray, b: NDArray, spacing: Sequence[float], values: Sequence[int]) -> dict[int, float | None]:
    """95th percentile of the symmetric Hausdorff distance of each label, in mm.

    max(P95 of the distances from the surface of A to that of B, P95 of those from B to A). The surface is the label's
    voxels that have a face neighbour outside the label (or outside the grid); distances are between voxel centres;
    percentiles are interpolated linearly.

    Args:
        a: Label map (X, Y, Z), integer.
        b: Label map (X, Y, Z), integer.
        spacing: Voxel size in mm, along X, Y, Z.
        values: Label values to compare, all positive.

    Returns:
        Distance in mm, at least 0, by label value; None where the label is missing in one or both maps, since there
        is no surface to measure to.

    Raises:
        ValueError: The two maps differ in shape, or a label value is not positive.

    Source: Huttenlocher et al. 1993, doi:10.1109/34.232073; MONAI's `compute_hausdorff_distance`. Learn2Reg weighs
        surface elements by area and takes 1 mm for every spacing; ours does neither.
    """
    _check_same_shape(a, b)
    if values and min(values) <= 0:
        raise ValueError(f"label values must be positive, got {min(values)}")
    boxes_a, boxes_b = label_boxes(a, values), label_boxes(b, values)
    distances: dict[int, float | None] = dict.fromkeys(values)
    for value in values:
        box_a, box_b = boxes_a.get(value), boxes_b.get(value)
        if box_a is not None and box_b is not None:
            box = _enclosing_box(box_a, box_b, a.shape)
            distances[value] = _hausdorff_mm(a[box] == value, b[box] == value, spacing)
    return distances


def target_registration_error(
    fixed: Points, moving: Points, displacement: NDArray | None, geometry: Geometry
) -> LandmarkErrors:
    """Distance between where the field sends each fixed landmark and where it truly is, ‖p + d(p) − q‖.

    Landmarks correspond by name. d is interpolated linearly; outside the grid it keeps its value at the border.

    Args:
        fixed: Landmarks p in the fixed world, RAS mm.
        moving: Landmarks q in the moving world, RAS mm.
        displacement: d, (X, Y, Z, 3) in RAS mm on the fixed grid; None is the identity, d = 0.
        geometry: The fixed grid.

    Returns:
        Errors in mm, for the names in both sets.
    """
    moving_rows = {name: row for row, name in enumerate(moving.names)}
    fixed_rows = [row for row, name in enumerate(fixed.names) if name in moving_rows]
    names = tuple(fixed.names[row] for row in fixed_rows)
    unmatched = tuple(sorted(set(fixed.names) ^ set(moving.names)))
    if not names:
        return LandmarkErrors(names, (), unmatched)
    starts = np.asarray(fixed.coordinates, dtype=np.float64)[fixed_rows]  # (N, 3)
    ends = np.asarray(moving.coordinates, dtype=np.float64)[[moving_rows[name] for name in names]]  # (N, 3)
    if displacement is not None:
        starts = starts + sample_displacement(displacement, geometry, starts)
    errors = np.linalg.norm(starts - ends, axis=1)
    return LandmarkErrors(names, tuple(float(error) for error in errors), unmatched)


def sample_displacement(displacement: NDArray, geometry: Geometry, points: NDArray) -> NDArray[np.float64]:
    """Displacement at points of the world, interpolated linearly; outside the grid its value at the border.

    Args:
        displacement: (X, Y, Z, 3), mm.
        geometry: Grid of the displacement.
        points: (N, 3), world RAS mm.

    Returns:
        (N, 3), mm.
    """
    voxels = apply_affine(np.linalg.inv(geometry.affine), points)  # (N, 3)
    coordinates = torch.from_numpy(np.ascontiguousarray(voxels.T, dtype=np.float32))[None, :, :, None, None]
    volume = torch.from_numpy(np.ascontiguousarray(np.moveaxis(displacement, -1, 0), dtype=np.float32))[None]
    sampled = sample(volume, coordinates, mode="linear", padding="border")  # (1, 3, N, 1, 1)
    return sampled[0, :, :, 0, 0].T.numpy().astype(np.float64)


def field_metrics(displacement: NDArray, geometry: Geometry) -> FieldMetrics:
    """Folding and log-Jacobian spread of p → p + d(p) on the field's own grid.

    Central differences inside, one-sided ones at the grid's border. The determinant is the same in voxels and in mm,
    since both are related by one linear map.

    Args:
        displacement: (X, Y, Z, 3), RAS mm.
        geometry: Grid of the displacement.
    """
    determinant = jacobian.jacobian_determinant(displacement_to_voxels(displacement, geometry))
    positive = bool((determinant > 0).any())
    has_interior = min(geometry.shape) > 2 * jacobian.LEARN2REG_BORDER_VOXELS
    return FieldMetrics(
        folding_percent=100.0 * float(jacobian.folding_fraction(determinant)),
        log_jacobian_std=float(jacobian.log_jacobian_std(determinant)) if positive else None,
        learn2reg_log_jacobian_std=float(jacobian.learn2reg_log_jacobian_std(determinant)) if has_interior else None,
    )


def deformation_mm(displacement: NDArray, inside: NDArray[np.bool_] | None = None) -> float:
    """Mean length of what a displacement does beyond its best affine fit, mean over x of ‖d(x) − (B x + c)‖.

    B and c are those of least squares over the same voxels, so that pose and overall scale do not count.

    Args:
        displacement: d, (X, Y, Z, 3) in mm, components along any orthonormal axes.
        inside: (X, Y, Z), the voxels that count, of which at most 200 000 are taken, evenly; None takes all, as does
            a mask without any voxel.

    Returns:
        Length in mm, at least 0.
    """
    shape = displacement.shape[:3]
    indices = np.arange(np.prod(shape)) if inside is None or not inside.any() else np.flatnonzero(inside)
    taken = indices[:: -(-indices.size // FIT_VOXELS)]
    # An affine map of the world is one of voxel indices too, so the grid's own geometry does not matter.
    positions = np.stack(np.unravel_index(taken, shape), axis=1).astype(np.float64)  # (N, 3)
    design = np.column_stack([positions - positions.mean(axis=0), np.ones(taken.size)])  # (N, 4)
    field = displacement.reshape(-1, 3)[taken].astype(np.float64)  # (N, 3)
    fitted = design @ np.linalg.lstsq(design, field, rcond=None)[0]
    return float(np.linalg.norm(field - fitted, axis=1).mean())


def _enclosing_box(a: Box, b: Box, shape: Sequence[int]) -> Box:
    """Smallest box around both, one voxel wider on each side where the grid allows.

    The margin keeps a surface that does not touch the grid's border from looking as if it did.
    """
    x, y, z = (
        slice(max(0, min(p.start, q.start) - 1), min(size, max(p.stop, q.stop) + 1))
        for p, q, size in zip(a, b, shape, strict=True)
    )
    return x, y, z


def _hausdorff_mm(a: NDArray[np.bool_], b: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    with warnings.catch_warnings():
        # MONAI 1.5 and 1.6 warn of a deprecated argument that MONAI itself passes on.
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        distance = compute_hausdorff_distance(
            torch.from_numpy(a)[None, None],
            torch.from_numpy(b)[None, None],
            include_background=True,
            percentile=HAUSDORFF_PERCENTILE,
            spacing=list(spacing),
        )  # (1, 1)
    return float(distance)


def _check_same_shape(a: NDArray, b: NDArray) -> None:
    if a.shape != b.shape:
        raise ValueError(f"label maps differ in shape: {a.shape} and {b.shape}")
