"""Smoothness of a displacement."""

from collections.abc import Sequence

import torch
from torch import Tensor

from biasreg.spatial.displacement import voxels_to_mm
from biasreg.spatial.guards import require_field


def diffusion_loss(displacement: Tensor, spacing: Sequence[float]) -> Tensor:
    """Return the mean squared gradient of the displacement, in mm per mm.

    Mean over voxels, the three axes and the three components of (Δ_a u_c · s_c / s_a)², with forward differences Δ_a,
    which, unlike central ones, also see a change from voxel to voxel. Millimetres make it mean the same on every grid.

    Args:
        displacement: u, (B, 3, X, Y, Z) in voxels, at least 2 voxels along each axis.
        spacing: s, voxel size in mm along each array axis.

    Returns:
        Scalar, at least 0, float32 or more; 0 for a translation.

    Raises:
        ValueError: On a wrong shape or an axis of fewer than 2 voxels.
    """
    require_field(displacement, "displacement")
    if min(displacement.shape[2:]) < 2:
        raise ValueError(f"displacement has shape {tuple(displacement.shape)}; a gradient needs 2 voxels per axis")
    in_mm = voxels_to_mm(displacement, spacing)
    per_axis = [in_mm.diff(dim=axis + 2).square().mean() / spacing[axis] ** 2 for axis in range(3)]
    return torch.stack(per_axis).mean()
