"""Displacements in mm on native grids: bring moving images and label maps onto the fixed grid through them."""

import numpy as np
import torch
from numpy.typing import NDArray

from biasreg.core.geometry import Geometry
from biasreg.core.image_io import Image
from biasreg.spatial.warp import in_field_of_view, sample, sample_labels


def warp_image(
    moving: Image, displacement: NDArray | None, fixed: Geometry, padding: float | None = None
) -> NDArray[np.float32]:
    """Resample the moving image once, linearly: the value at fixed point p is moving(p + d(p)).

    Args:
        moving: The moving image on its own grid.
        displacement: d, (X, Y, Z, 3) in RAS mm on the fixed grid; None is the identity of the world, d = 0.
        fixed: The fixed grid.
        padding: Value where p + d(p) lies outside the moving grid; the image's minimum when None.

    Returns:
        (X, Y, Z) float32.
    """
    volume = torch.from_numpy(np.ascontiguousarray(moving.array, dtype=np.float32))[None, None]
    coordinates = torch.from_numpy(moving_coordinates(displacement, fixed, moving.geometry))[None]
    outside = float(moving.array.min()) if padding is None else padding
    return sample(volume, coordinates, padding=outside)[0, 0].numpy()


def warp_label_map(moving: Image, displacement: NDArray | None, fixed: Geometry) -> NDArray:
    """Warp a label map: the value at fixed point p is the moving label at p + d(p).

    Each label is interpolated linearly and the largest wins; outside the moving grid is background.

    Args:
        moving: Label map (X', Y', Z') on its own grid.
        displacement: d, (X, Y, Z, 3) in RAS mm on the fixed grid; None is the identity of the world, d = 0.
        fixed: The fixed grid.

    Returns:
        Label map (X, Y, Z) with no value that the moving map does not have.
    """
    if displacement is None and moving.geometry.is_close(fixed):
        return moving.array  # every fixed voxel centre is a moving one: nothing to interpolate
    return interpolate_labels(moving.array, moving_coordinates(displacement, fixed, moving.geometry))


def moving_coordinates(displacement: NDArray | None, fixed: Geometry, moving: Geometry) -> NDArray[np.float32]:
    """Where each fixed voxel is found in the moving grid, A_moving⁻¹ (A_fixed x + d(x)).

    Args:
        displacement: d, (X, Y, Z, 3) in RAS mm on the fixed grid; None is 0.
        fixed: The fixed grid, affine A_fixed.
        moving: The moving grid, affine A_moving.

    Returns:
        (3, X, Y, Z), voxels of the moving grid.
    """
    to_voxels = np.linalg.inv(moving.affine)
    grid_to_grid = to_voxels @ fixed.affine
    x, y, z = np.ogrid[tuple(slice(0, float(size)) for size in fixed.shape)]
    coordinates = np.empty((3, *fixed.shape), dtype=np.float32)
    for axis, (row, world_row) in enumerate(zip(grid_to_grid[:3], to_voxels[:3, :3], strict=True)):
        coordinates[axis] = row[0] * x + row[1] * y + (row[2] * z + row[3])
        if displacement is not None:
            coordinates[axis] += displacement @ world_row.astype(np.float32)
    return coordinates


def displacement_to_voxels(displacement: NDArray, geometry: Geometry) -> torch.Tensor:
    """Turn a displacement in mm of the world into voxels of its own grid, u = A⁻¹ d with A the affine's 3×3 part.

    Args:
        displacement: (X, Y, Z, 3), RAS mm.
        geometry: Grid of the displacement.

    Returns:
        (1, 3, X, Y, Z) float32, voxels, component a along array axis a.
    """
    to_voxels = np.linalg.inv(geometry.affine[:3, :3]).astype(np.float32)
    voxels = displacement.astype(np.float32, copy=False) @ to_voxels.T  # (X, Y, Z, 3)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(voxels, -1, 0)))[None]


def interpolate_labels(labels: NDArray, coordinates: NDArray[np.float32]) -> NDArray:
    """Do what `sample_labels` does, but call it only where the 8 voxels around a position do not agree.

    Where they agree, every interpolation gives their common label; that is so nearly everywhere, and a label map with
    many labels takes one interpolation for each.

    Args:
        labels: (X', Y', Z') integer.
        coordinates: (3, X, Y, Z), voxels of `labels`.

    Returns:
        (X, Y, Z), dtype of `labels`.
    """
    lower = [
        np.clip(np.floor(positions), 0, size - 1).astype(np.int32)
        for positions, size in zip(coordinates, labels.shape, strict=True)
    ]
    smallest, largest = _extremes_of_cells(labels)
    warped = smallest[tuple(lower)]
    outside = ~in_field_of_view(torch.from_numpy(coordinates)[None], labels.shape)[0, 0].numpy()
    warped[outside] = 0
    disputed = (smallest != largest)[tuple(lower)] & ~outside
    if disputed.any():
        # Torch has no arithmetic for large unsigned types. What int64 cannot hold wraps, and at the end wraps back.
        kind = np.int64 if labels.dtype == np.uint64 else np.promote_types(labels.dtype, np.int32)
        signed = labels.astype(kind)
        values = [int(value) for value in np.unique(signed) if value != 0]
        positions = torch.from_numpy(coordinates[:, disputed])[None, :, :, None, None]  # (1, 3, N, 1, 1)
        found = sample_labels(torch.from_numpy(signed)[None, None], positions, values)
        warped[disputed] = found[0, 0, :, 0, 0].numpy().astype(labels.dtype)
    return warped


def _extremes_of_cells(labels: NDArray) -> tuple[NDArray, NDArray]:
    """Smallest and largest label among each voxel and its upper neighbours along all axes (8 voxels)."""
    smallest, largest = labels.copy(), labels.copy()
    for axis in range(3):
        here = [slice(None)] * 3
        ahead = [slice(None)] * 3
        here[axis], ahead[axis] = slice(None, -1), slice(1, None)
        np.minimum(smallest[tuple(here)], smallest[tuple(ahead)], out=smallest[tuple(here)])
        np.maximum(largest[tuple(here)], largest[tuple(ahead)], out=largest[tuple(here)])
    return smallest, largest
