"""Jacobian determinant of a transform, and what is read off it: folding and roughness."""

import torch
from torch import Tensor

from biasreg.spatial.guards import at_least_float32, require_field

# Learn2Reg's evaluation adds this to the determinant before the logarithm, so that mild folding still has one.
_LEARN2REG_OFFSET = 3.0
_LEARN2REG_RANGE = (1e-9, 1e9)
LEARN2REG_BORDER_VOXELS = 2  # left out on every side


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """Return det ∂(x + u(x))/∂x by central differences inside and one-sided ones at the border.

    Args:
        displacement: u, (B, 3, X, Y, Z) in voxels, at least 2 voxels along each axis.

    Returns:
        (B, X, Y, Z): local change of volume, 1 for no change, 0 or less where the transform folds. It does not depend
        on the spacing.

    Raises:
        ValueError: On a wrong shape or an axis of fewer than 2 voxels.
    """
    require_field(displacement, "displacement")
    if min(displacement.shape[2:]) < 2:
        raise ValueError(f"displacement has shape {tuple(displacement.shape)}; a derivative needs 2 voxels per axis")
    gradients = torch.gradient(at_least_float32(displacement), dim=(2, 3, 4))
    return _determinant(gradients[0], gradients[1], gradients[2])


def folding_fraction(determinant: Tensor) -> Tensor:
    """Return the fraction of voxels at which the transform folds.

    Args:
        determinant: (B, X, Y, Z) from `jacobian_determinant`.

    Returns:
        (B,) in [0, 1]: share of voxels whose determinant is 0 or less. Not-a-number counts as folded.
    """
    return (~(determinant > 0)).flatten(1).to(torch.float32).mean(dim=1)


def log_jacobian_std(determinant: Tensor) -> Tensor:
    """Return the standard deviation of the determinant's logarithm over the voxels that do not fold.

    Args:
        determinant: (B, X, Y, Z) from `jacobian_determinant`.

    Returns:
        (B,) at least 0, 0 for an affine transform; not-a-number for a case in which every voxel folds.
    """
    cases = [case[case > 0].log() for case in at_least_float32(determinant).flatten(1)]
    return torch.stack([case.std(correction=0) if case.numel() else case.new_tensor(torch.nan) for case in cases])


def learn2reg_log_jacobian_std(determinant: Tensor) -> Tensor:
    """Return SDlogJ as the Learn2Reg challenge computes it.

    std(log(clip(det + 3, 1e-9, 1e9))), with central differences and 2 voxels left out at each face.

    Args:
        determinant: (B, X, Y, Z) from `jacobian_determinant`, at least 5 voxels along each axis.

    Returns:
        (B,) at least 0.

    Raises:
        ValueError: On an axis of fewer than 5 voxels.

    Source:
        Hering et al.: Learn2Reg: comprehensive multi-task medical image registration challenge, IEEE TMI 2022,
        doi:10.1109/TMI.2022.3213983, and its published evaluation.
    """
    border = LEARN2REG_BORDER_VOXELS
    if min(determinant.shape[1:]) <= 2 * border:
        raise ValueError(
            f"determinant has shape {tuple(determinant.shape)}; Learn2Reg's definition leaves out {border} voxels at "
            f"each face, so every axis needs at least {2 * border + 1}"
        )
    inner = determinant[:, border:-border, border:-border, border:-border]
    return (inner + _LEARN2REG_OFFSET).clamp(*_LEARN2REG_RANGE).log().flatten(1).std(dim=1, correction=0)


def _determinant(along_x: Tensor, along_y: Tensor, along_z: Tensor) -> Tensor:
    """Return det(I + ∇u); each argument is ∂u along one axis, (B, 3, X, Y, Z)."""
    xx, yx, zx = along_x.unbind(1)  # yx: change of component y along x
    xy, yy, zy = along_y.unbind(1)
    xz, yz, zz = along_z.unbind(1)
    xx, yy, zz = xx + 1, yy + 1, zz + 1
    return xx * (yy * zz - yz * zy) - xy * (yx * zz - yz * zx) + xz * (yx * zy - yy * zx)
