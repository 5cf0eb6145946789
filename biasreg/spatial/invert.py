"""Numerical inverse of a displacement field."""

from typing import NamedTuple

import torch
from torch import Tensor

from biasreg.spatial.guards import at_least_float32, require_field
from biasreg.spatial.warp import positions, sample

# A step that did not bring a voxel closer is halved there. 2^-6 still converges wherever the transform stretches less
# than 64-fold; below it a voxel is in a fold, and smaller steps only waste time.
_SMALLEST_DAMPING = 2.0**-6


class Inversion(NamedTuple):
    """An inverse displacement and how good it is.

    Attributes:
        displacement: v, (B, 3, X, Y, Z) in voxels, with x + v(x) the inverse of x + u(x).
        residual: ‖v(x) + u(x + v(x))‖, (B, X, Y, Z) in voxels: how far from x one lands by going back and forth. It is
            0 for an exact inverse; where u folds, or maps no point of its domain to x, it stays large.
    """

    displacement: Tensor
    residual: Tensor


def invert(displacement: Tensor, *, iterations: int = 50, tolerance_voxels: float = 0.01) -> Inversion:
    """Invert a displacement by damped fixed-point iteration.

    v ← v − λ (v + u(x + v)),  v = 0 at the start. λ starts at 1, which is Chen's iteration v ← −u(x + v), and is halved
    at each voxel whose residual did not shrink. Damping lets the iteration converge where u stretches too much for
    the plain one. It stops as soon as every residual is below the tolerance. Beyond the grid u keeps its border value.

    Args:
        displacement: u, (B, 3, X, Y, Z) in voxels.
        iterations: The largest number of updates, at least 1.
        tolerance_voxels: Residual in voxels that is good enough everywhere, 0 or more.

    Returns:
        The inverse and its residual, in float32 (float64 for a float64 displacement).

    Raises:
        ValueError: On a wrong shape, no iteration, or a negative tolerance.

    Source:
        Chen, Lu, Chen, Ruchala, Olivera: A simple fixed-point approach to invert a deformation field, Medical Physics
        35(1), 2008, doi:10.1118/1.2816107. The damping per voxel and the stop are ours.
    """
    require_field(displacement, "displacement")
    if iterations < 1 or tolerance_voxels < 0:
        raise ValueError(
            f"{iterations} iterations to a tolerance of {tolerance_voxels} voxels; "
            "give at least 1 iteration and a tolerance of 0 or more"
        )
    displacement = at_least_float32(displacement)
    inverse = torch.zeros_like(displacement)
    error = displacement  # v + u(x + v) at v = 0
    residual = torch.linalg.vector_norm(error, dim=1, keepdim=True)
    damping = torch.ones_like(residual)
    for _ in range(iterations):
        inverse = inverse - damping * error
        error = inverse + sample(displacement, positions(inverse), mode="linear", padding="border")
        previous, residual = residual, torch.linalg.vector_norm(error, dim=1, keepdim=True)
        if bool((residual <= tolerance_voxels).all()):
            break
        damping = torch.where(residual >= previous, 0.5 * damping, damping).clamp(min=_SMALLEST_DAMPING)
    return Inversion(inverse, residual.squeeze(1))
