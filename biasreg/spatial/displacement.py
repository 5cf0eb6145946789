"""Algebra of displacement fields: composition, change of grid, change of unit."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from biasreg.spatial.guards import at_least_float32, require_field, require_same_shape
from biasreg.spatial.warp import positions, sample


def compose(first: Tensor, second: Tensor) -> Tensor:
    """Compose two displacements: result(x) = first(x) + second(x + first(x)).

    The point is moved by `first` and then by `second`, so warping with the result equals warping with `second` and
    then warping that image with `first`. Beyond the grid `second` keeps the value of the grid's border.

    Args:
        first: (B, 3, X, Y, Z) in voxels.
        second: (B, 3, X, Y, Z) in voxels of the same grid.

    Returns:
        (B, 3, X, Y, Z) in voxels, float32 (float64 when both are).

    Raises:
        ValueError: When a shape is wrong or the shapes differ.
    """
    require_field(first, "first")
    require_field(second, "second")
    require_same_shape(first, second, ("first", "second"))
    first = at_least_float32(first)
    return first + sample(at_least_float32(second), positions(first), mode="linear", padding="border")


def resize(displacement: Tensor, shape: Sequence[int]) -> Tensor:
    """Bring a displacement to another grid over the same field of view.

    The two grids share their outer faces, not their outermost voxel centres, as the levels of a pyramid do. Values are
    interpolated trilinearly and scaled by new/old size along each axis, so that they count voxels of the new grid.

    Args:
        displacement: (B, 3, X, Y, Z) in voxels.
        shape: New grid shape (X', Y', Z').

    Returns:
        (B, 3, X', Y', Z') in voxels of the new grid, float32 (float64 for a float64 displacement).

    Raises:
        ValueError: On a wrong shape of the displacement or of the new grid.
    """
    require_field(displacement, "displacement")
    new_shape = tuple(int(size) for size in shape)
    if len(new_shape) != 3 or min(new_shape) < 1:
        raise ValueError(f"new grid shape {new_shape} is not three sizes of at least 1")
    displacement = at_least_float32(displacement)
    old_shape = tuple(displacement.shape[2:])
    if new_shape == old_shape:
        return displacement
    resized = F.interpolate(displacement, size=new_shape, mode="trilinear", align_corners=False)
    scale = [new / old for new, old in zip(new_shape, old_shape, strict=True)]
    return resized * resized.new_tensor(scale).view(1, 3, 1, 1, 1)


def voxels_to_mm(displacement: Tensor, spacing: Sequence[float] | Tensor) -> Tensor:
    """Turn voxels into millimetres along the grid's own axes (no rotation into the world).

    Args:
        displacement: (B, 3, X, Y, Z) in voxels.
        spacing: Voxel size in mm: three numbers, or (B, 3), one row for each case of the batch.

    Returns:
        (B, 3, X, Y, Z) in mm.

    Raises:
        ValueError: On a wrong shape of either.
    """
    return at_least_float32(displacement) * _per_axis(displacement, spacing)


def _per_axis(displacement: Tensor, spacing: Sequence[float] | Tensor) -> Tensor:
    """Return the spacing as (1 or B, 3, 1, 1, 1), in the displacement's precision and on its device."""
    require_field(displacement, "displacement")
    dtype = torch.promote_types(displacement.dtype, torch.float32)
    per_axis = torch.as_tensor(spacing, dtype=dtype, device=displacement.device)
    batch = displacement.shape[0]
    if per_axis.shape not in ((3,), (1, 3), (batch, 3)):
        raise ValueError(
            f"spacing has shape {tuple(per_axis.shape)} but the displacement has shape {tuple(displacement.shape)}; "
            f"expected (3,) or ({batch}, 3)"
        )
    return per_axis.reshape(-1, 3, 1, 1, 1)
