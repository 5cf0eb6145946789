"""From the canonical grid, where the network works, to the native grids of the images."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biasreg.core.geometry import Geometry
from biasreg.spatial.warp import sample

# Native grids are worked through in slabs of about this many voxels, so that memory does not grow with the image.
SLAB_VOXELS = 4_000_000
ROUNDING_VOXELS = 1e-3  # far below what a registration can be right by


def native_displacement(
    field: Tensor, grid: Geometry, frames: tuple[NDArray, NDArray], native: Geometry
) -> NDArray[np.float32]:
    """Turn a field on the canonical grid into a displacement between two worlds.

    A point p of the first image's world has the canonical position c = F₁⁻¹ p; the field moves it to c + u(c), and
    the second image's world has it at q = F₂ (c + u(c)). The result is q − p. Beyond the canonical grid the field keeps
    the value at its border.

    Args:
        field: u, (1, 3, X, Y, Z) in voxels of the canonical grid.
        grid: The canonical grid.
        frames: F₁ and F₂, (4, 4), canonical mm → world RAS mm of the first and of the second image.
        native: Grid of the first image, on which the result is given.

    Returns:
        (X', Y', Z', 3) float32 in RAS mm.
    """
    first, second = frames
    to_canonical = np.linalg.inv(first @ grid.affine) @ native.affine  # native voxel → canonical voxel
    linear = (second @ grid.affine)[:3, :3]  # canonical voxels → mm in the second world
    start = second @ np.linalg.inv(first) @ native.affine - native.affine  # q − p without the field
    result = np.empty((*native.shape, 3), dtype=np.float32)
    for part in _slabs(native.shape):
        index = _indices(part, native.shape)
        coordinates = torch.from_numpy(_affine(to_canonical, index).astype(np.float32))[None].to(field.device)
        moved = sample(field, coordinates, padding="border")[0].cpu().numpy().astype(np.float64)
        shift = _affine(start, index) + np.einsum("ab,bxyz->axyz", linear, moved)
        result[part] = np.moveaxis(shift, 0, -1)
    return result


def rounded(displacement: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """Round to a thousandth of a voxel or finer, by a power of two in mm: the further digits of a float32 are noise.

    Files of rounded fields are a third smaller and faster to write.

    Args:
        displacement: (X, Y, Z, 3) mm; changed in place.
        geometry: Its grid.

    Returns:
        The same array.
    """
    step = 2.0 ** np.floor(np.log2(min(geometry.spacing) * ROUNDING_VOXELS))
    displacement *= np.float32(1 / step)
    np.rint(displacement, out=displacement)
    displacement *= np.float32(step)
    return displacement


def native_map(values: Tensor, grid: Geometry, frame: NDArray, native: Geometry) -> NDArray[np.float32]:
    """Bring a map on the canonical grid to the native grid of an image, linearly; beyond the canonical grid its border.

    Args:
        values: (X, Y, Z).
        grid: The canonical grid.
        frame: (4, 4), canonical mm → world RAS mm of the image.
        native: Grid of the image.

    Returns:
        (X', Y', Z') float32.
    """
    to_canonical = np.linalg.inv(frame @ grid.affine) @ native.affine
    result = np.empty(native.shape, dtype=np.float32)
    for part in _slabs(native.shape):
        positions = _affine(to_canonical, _indices(part, native.shape)).astype(np.float32)
        coordinates = torch.from_numpy(positions)[None].to(values.device)
        result[part] = sample(values[None, None], coordinates, padding="border")[0, 0].cpu().numpy()
    return result


def affine_displacement(matrix: NDArray, native: Geometry) -> NDArray[np.float32]:
    """Turn an affine map between two worlds into a displacement.

    Args:
        matrix: (4, 4), fixed world → moving world, RAS mm.
        native: The fixed grid.

    Returns:
        (X, Y, Z, 3) float32 in RAS mm: `matrix` p − p.
    """
    shift = _affine(matrix @ native.affine - native.affine, _indices(slice(native.shape[0]), native.shape))
    return np.moveaxis(shift, 0, -1).astype(np.float32)


def _slabs(shape: tuple[int, int, int]) -> Iterator[slice]:
    thickness = max(1, SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], thickness):
        yield slice(start, min(start + thickness, shape[0]))


def _indices(part: slice, shape: tuple[int, int, int]) -> tuple[NDArray, NDArray, NDArray]:
    x, y, z = np.ogrid[part.start or 0 : part.stop, : shape[1], : shape[2]]
    return x, y, z


def _affine(matrix: NDArray, index: tuple[NDArray, NDArray, NDArray]) -> NDArray[np.float64]:
    """Apply a (4, 4) matrix to open index grids; (3, X, Y, Z)."""
    x, y, z = index
    return np.stack([row[0] * x + row[1] * y + row[2] * z + row[3] for row in matrix[:3]])
