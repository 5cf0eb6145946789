"""Chains of matrices and displacement fields: where they take points, the one field that they make, and their inverse.

All points are in RAS mm. A chain takes points of the fixed world to the moving world.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from biasreg.core.geometry import Geometry, apply_affine
from biasreg.core.transforms import FieldPart, InverseFieldPart, LinearPart, Part
from biasreg.spatial.warp import in_field_of_view, sample

# Grids are worked through in slabs of about this many voxels, so that memory does not grow with the image.
SLAB_VOXELS = 2_000_000

_ITERATIONS = 50  # as many as `invert` makes at most
_SOLVED_MM = 1e-4  # float32 displacements are no finer
_SMALLEST_DAMPING = 2.0**-6  # as in `invert`: smaller steps are taken in folds alone, where there is no inverse
_FIT_POINTS = 20_000  # of which the affine part of a field is found
_SMALLEST_STRETCH = 0.1  # of an affine part that is worth taking out before inversion


class Mapped(NamedTuple):
    """Where a chain takes points.

    Attributes:
        points: (N, 3) float64, RAS mm.
        outside: For each part of the chain, the number of points that its field does not reach; 0 for matrices.
    """

    points: NDArray[np.float64]
    outside: tuple[int, ...]


class Composed(NamedTuple):
    """A chain as one field: reference point p is taken to p + d(p).

    Attributes:
        displacement: d, (X, Y, Z, 3) float32, RAS mm.
        geometry: The reference grid.
        outside: As in `Mapped`, of the reference grid's voxels.
    """

    displacement: NDArray[np.float32]
    geometry: Geometry
    outside: tuple[int, ...]


def map_points(parts: Sequence[Part], points: NDArray) -> Mapped:
    """Take points through a chain. Beyond its grid a field keeps the value at its border.

    Args:
        parts: The chain; the first part comes first.
        points: (N, 3), RAS mm.

    Returns:
        The points in the moving world, and how many of them the fields did not reach.
    """
    return _map([_step(part) for part in parts], np.asarray(points, dtype=np.float64))


def compose(parts: Sequence[Part], reference: Geometry) -> Composed:
    """Make one field of a chain, on the grid of the reference.

    A field that comes first and lies on the reference grid is taken as it is, so that it is not interpolated.

    Args:
        parts: The chain; the first part comes first.
        reference: The grid.

    Returns:
        The field, and how many voxels the chain's fields did not reach.
    """
    first = parts[0] if parts else None
    start = first if isinstance(first, FieldPart) and first.geometry.is_close(reference) else None
    if start is not None and len(parts) == 1:
        return Composed(start.displacement, reference, (0,))
    steps = [_step(part) for part in (parts if start is None else parts[1:])]
    result = np.empty((*reference.shape, 3), dtype=np.float32)
    outside = np.zeros(len(steps), dtype=np.int64)
    for part in _slabs(reference.shape):
        points = _grid_points(reference, part)
        begin = points if start is None else points + start.displacement[part].reshape(-1, 3)
        mapped = _map(steps, begin)
        result[part] = (mapped.points - points).reshape(result[part].shape)
        outside += mapped.outside
    counts = tuple(int(count) for count in outside)
    return Composed(result, reference, counts if start is None else (0, *counts))


def invert_parts(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Invert a chain part by part, in reverse order: matrices exactly, fields numerically.

    Args:
        parts: The chain.

    Returns:
        The chain that takes points back.
    """
    return tuple(_inverted(part) for part in reversed(parts))


def polish_inverse(
    inverse: NDArray[np.float32], grid: Geometry, field: FieldPart, *, iterations: int, tolerance_mm: float
) -> NDArray[np.float32]:
    """Bring an inverse on a grid closer to that of a field; where it leaves the field's grid it stays as it is.

    Args:
        inverse: w, (X', Y', Z', 3) RAS mm on `grid`: q is taken to about the p with p + d(p) = q.
        grid: Grid of the inverse.
        field: The field d.
        iterations: Most steps for a voxel.
        tolerance_mm: How near is near enough.

    Returns:
        The inverse, (X', Y', Z', 3) float32 RAS mm on `grid`.
    """
    displacement, to_start = _sampler(field), np.linalg.inv(_affine_part(field))
    result = inverse.copy()
    for part in _slabs(grid.shape):
        targets = _grid_points(grid, part)
        start = targets + inverse[part].reshape(-1, 3)
        inside = _is_between_voxels(start, field.geometry)
        if not inside.any():
            continue
        found = _solve(
            lambda p: apply_affine(to_start, p + displacement(p)),
            apply_affine(to_start, targets[inside]),
            start[inside],
            iterations=iterations,
            tolerance_mm=tolerance_mm,
        )
        start[inside] = np.where(_is_between_voxels(found, field.geometry)[:, None], found, start[inside])
        result[part] = (start - targets).reshape(result[part].shape)
    return result


def round_trip_mm(parts: Sequence[Part], inverse: Sequence[Part], points: NDArray) -> NDArray[np.float64]:
    """Measure how far from its start a point lands after going through a chain and back.

    Args:
        parts: The chain.
        inverse: Its inverse.
        points: (N, 3), RAS mm, in the world that the chain starts from.

    Returns:
        (N,), mm.
    """
    back = map_points(inverse, map_points(parts, points).points).points
    return np.asarray(np.linalg.norm(back - points, axis=1), dtype=np.float64)


def grid_sample_points(geometry: Geometry, most: int) -> NDArray[np.float64]:
    """Return voxel centres spread evenly over a grid.

    Args:
        geometry: The grid.
        most: About how many at most.

    Returns:
        (N, 3), RAS mm.
    """
    step = max(1, math.ceil((math.prod(geometry.shape) / most) ** (1 / 3)))
    axes = [np.arange((size - 1) % step // 2, size, step, dtype=np.float64) for size in geometry.shape]
    return apply_affine(geometry.affine, np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3))


class _Reached(NamedTuple):
    """Points (N, 3) at the end of a part, and how many of them its field does not reach."""

    points: NDArray[np.float64]
    outside: int


_Step = Callable[[NDArray[np.float64]], _Reached]


def _map(steps: Sequence[_Step], points: NDArray[np.float64]) -> Mapped:
    outside = []
    for step in steps:
        points, count = step(points)
        outside.append(count)
    return Mapped(points, tuple(outside))


def _step(part: Part) -> _Step:
    """Make a part ready for many calls."""
    if isinstance(part, LinearPart):
        matrix = part.matrix
        return lambda points: _Reached(apply_affine(matrix, points), 0)
    if isinstance(part, FieldPart):
        field = _sampler(part)
        return lambda points: _Reached(points + field(points), _count_outside(points, part.geometry))
    return _inverse_step(part)


def _sampler(part: FieldPart) -> Callable[[NDArray], NDArray]:
    """Make the function that gives d, (N, 3) mm, at points (N, 3)."""
    to_voxels = np.linalg.inv(part.geometry.affine)
    volume = torch.from_numpy(np.ascontiguousarray(np.moveaxis(part.displacement, -1, 0)))[None]

    def displacement(points: NDArray) -> NDArray:
        voxels = _as_coordinates(apply_affine(to_voxels, points))
        return sample(volume, voxels, padding="border")[0, :, :, 0, 0].numpy().T

    return displacement


def _inverse_step(part: InverseFieldPart) -> _Step:
    """Find p with p + d(p) = q at each point q, so that nothing is lost by interpolating an inverse between voxels.

    A field may hold a whole pre-alignment. With M the affine map nearest to it, M⁻¹ (p + d(p)) is near to p, and is
    brought to M⁻¹ q by the damped fixed-point iteration of `spatial/invert.py`, from p = M⁻¹ q on.
    """
    field = _sampler(part.field)
    to_start = np.linalg.inv(_affine_part(part.field))

    def step(points: NDArray[np.float64]) -> _Reached:
        targets = apply_affine(to_start, points)
        found = _solve(lambda p: apply_affine(to_start, p + field(p)), targets, targets)
        return _Reached(found, _count_outside(found, part.field.geometry))

    return step


def _solve(
    forward: Callable[[NDArray], NDArray],
    targets: NDArray,
    start: NDArray,
    *,
    iterations: int = _ITERATIONS,
    tolerance_mm: float = _SOLVED_MM,
) -> NDArray[np.float64]:
    """Find p with forward(p) = target, p ← p − λ (forward(p) − target), λ halved where that does not lead nearer.

    Of a point that does not converge, as in a fold, the nearest p is taken.
    """
    best, current = start.copy(), start.copy()
    error = forward(current) - targets
    distance = np.linalg.norm(error, axis=1)
    least, damping = distance.copy(), np.ones(len(targets))
    for _ in range(iterations):
        active = np.flatnonzero(least > tolerance_mm)
        if not active.size:
            break
        current[active] -= damping[active, None] * error[active]
        error[active] = forward(current[active]) - targets[active]
        reached = np.linalg.norm(error[active], axis=1)
        damping[active[reached >= distance[active]]] /= 2
        damping = np.maximum(damping, _SMALLEST_DAMPING)
        distance[active] = reached
        nearer = active[reached < least[active]]
        best[nearer], least[nearer] = current[nearer], distance[nearer]
    return best


def _count_outside(points: NDArray, geometry: Geometry) -> int:
    voxels = _as_coordinates(apply_affine(np.linalg.inv(geometry.affine), points))
    return int((~in_field_of_view(voxels, geometry.shape)).sum())


def _is_between_voxels(points: NDArray, geometry: Geometry) -> NDArray[np.bool_]:
    """Tell at which points (N, 3) a field is interpolated, and not continued from its border."""
    voxels = apply_affine(np.linalg.inv(geometry.affine), points)
    return np.asarray(((voxels >= 0) & (voxels <= np.array(geometry.shape) - 1)).all(axis=1))


def _as_coordinates(voxels: NDArray[np.float64]) -> torch.Tensor:
    """(N, 3) → (1, 3, N, 1, 1) float32."""
    return torch.from_numpy(np.ascontiguousarray(voxels.T, dtype=np.float32))[None, :, :, None, None]


def _slabs(shape: tuple[int, int, int]) -> Iterator[slice]:
    thickness = max(1, SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], thickness):
        yield slice(start, min(start + thickness, shape[0]))


def _grid_points(geometry: Geometry, part: slice) -> NDArray[np.float64]:
    x, y, z = np.ogrid[part.start : part.stop, : geometry.shape[1], : geometry.shape[2]]
    rows = geometry.affine[:3]
    return np.stack([row[0] * x + row[1] * y + (row[2] * z + row[3]) for row in rows], axis=-1).reshape(-1, 3)


def _inverted(part: Part) -> Part:
    if isinstance(part, LinearPart):
        matrix = np.asarray(np.linalg.inv(part.matrix), dtype=np.float64)
        return LinearPart(matrix, f"inverse of {part.kind}", part.source)
    return part.field if isinstance(part, InverseFieldPart) else InverseFieldPart(part)


def _affine_part(part: FieldPart) -> NDArray[np.float64]:
    """Fit the affine map M that takes p nearest to p + d(p); of a field that has no sensible one, its mean shift."""
    points = grid_sample_points(part.geometry, _FIT_POINTS)
    targets = map_points([part], points).points
    center = points.mean(axis=0)
    rows = np.column_stack([points - center, np.ones(len(points))])
    solution, _, rank, _ = np.linalg.lstsq(rows, targets, rcond=None)
    matrix = np.eye(4)
    smallest = np.linalg.svd(solution[:3], compute_uv=False)[-1]
    if rank == 4 and smallest > _SMALLEST_STRETCH and np.linalg.det(solution[:3]) > 0:
        matrix[:3, :3] = solution[:3].T
        matrix[:3, 3] = solution[3] - matrix[:3, :3] @ center
    else:
        matrix[:3, 3] = (targets - points).mean(axis=0)
    return matrix
