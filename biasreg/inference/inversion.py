"""The inverse of a predicted field, and how well the two undo each other."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from biasreg.core.geometry import Geometry
from biasreg.inference.prediction import InverseError
from biasreg.spatial.invert import invert
from biasreg.spatial.native import moving_coordinates
from biasreg.spatial.warp import in_field_of_view, sample

CANONICAL_ITERATIONS = 20  # of an inversion that is polished on the native grid afterwards


def invert_beyond_border(displacement: Tensor, grid: Geometry) -> tuple[Tensor, Geometry]:
    """Invert a field that keeps its border value beyond its grid.

    The inverse does not keep its own border value there. It is made on a grid that is larger at each side by the
    largest displacement along that axis; from there on it keeps its value too.

    Args:
        displacement: (1, 3, X, Y, Z) in voxels of `grid`.
        grid: The canonical grid.

    Returns:
        The inverse in voxels, and its own, larger grid.
    """
    largest = displacement.abs().amax(dim=(0, 2, 3, 4)).ceil().int().tolist()
    margins = [min(margin, size) for margin, size in zip(largest, grid.shape, strict=True)]
    padded = F.pad(displacement, [margin for margin in reversed(margins) for _ in range(2)], mode="replicate")
    affine = grid.affine
    affine[:3, 3] -= affine[:3, :3] @ margins
    return invert(padded, iterations=CANONICAL_ITERATIONS).displacement, Geometry.from_affine(affine, padded.shape[2:])


def inverse_error_map(
    displacement: NDArray, grid: Geometry, inverse: NDArray, inverse_grid: Geometry
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Measure how far from its start a point lands after going through a field and back through its inverse.

    Args:
        displacement: (X, Y, Z, 3) RAS mm on `grid`.
        grid: Where points start.
        inverse: (X', Y', Z', 3) RAS mm on `inverse_grid`.
        inverse_grid: Where they go.

    Returns:
        (X, Y, Z) distance in mm, and whether the point lands inside `inverse_grid`; beyond it the inverse keeps its
        border value.
    """
    error, inside = _there_and_back(displacement, grid, inverse, inverse_grid)
    return np.sqrt(np.square(error).sum(axis=-1)), inside


def _there_and_back(
    there: NDArray[np.float32], grid: Geometry, back: NDArray[np.float32], back_grid: Geometry
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Add both displacements of each voxel, (X, Y, Z, 3) mm, and tell whether it lands inside the second grid."""
    coordinates = torch.from_numpy(moving_coordinates(there, grid, back_grid))[None]
    field = torch.from_numpy(np.ascontiguousarray(np.moveaxis(back, -1, 0)))[None]
    returned = sample(field, coordinates, padding="border")[0].movedim(0, -1).numpy()
    return there + returned, in_field_of_view(coordinates, back_grid.shape)[0, 0].numpy()


def inverse_error(displacement: NDArray, fixed: Geometry, inverse: NDArray, moving: Geometry) -> InverseError | None:
    """Summarise how well two fields undo each other, over the voxels of the moving grid that land in the fixed one.

    Args:
        displacement: (X, Y, Z, 3) RAS mm on the fixed grid.
        fixed: The fixed grid.
        inverse: (X', Y', Z', 3) RAS mm on the moving grid.
        moving: The moving grid.

    Returns:
        The error; None if no voxel lands inside.
    """
    lengths, inside = inverse_error_map(inverse, moving, displacement, fixed)
    distance = lengths[inside]
    if distance.size == 0:
        return None
    return InverseError(
        mean_mm=float(distance.mean(dtype=np.float64)),
        percentile95_mm=float(np.percentile(distance, 95)),
        max_mm=float(distance.max()),
    )
