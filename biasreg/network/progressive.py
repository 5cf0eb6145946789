"""Progressive registration: from the coarsest level to the finest, each level adds a residual to the field so far."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biasreg.network.blocks import ConvolutionBlock, convolution, recompute, upsample
from biasreg.spatial.displacement import compose, resize
from biasreg.spatial.integrate import integrate_velocity
from biasreg.spatial.warp import warp

RESIDUAL_STD = 1e-5  # of the initial weights of φ: a new network starts at the identity (VoxelMorph's choice)
NEIGHBOURS = 27  # positions of a local correlation volume, one voxel to each side


class RegistrationLevel(nn.Module):
    """One level: warp the moving features by the field so far, estimate a residual, update the field.

        Ψ_i = up of Φ_{i+1};  M̂ = moving features warped by Ψ_i
        H_i = 2×(Conv3, IN, LReLU)[M̂, fixed features, up(H_{i+1})]
        φ_i = unit · Conv3(H_i);  Φ_i(x) = φ_i(x) + Ψ_i(x + φ_i(x))

    At the coarsest level Ψ = 0 and there is no H_{i+1}.

    Args:
        channels: Channels of the features, and of H_i.
        coarser_channels: Channels of H_{i+1}; 0 at the coarsest level.
        integration_steps: Scaling-and-squaring steps of φ_i; 0 takes it as a displacement.
        correlation: Also give H_i the correlation of M̂ and the fixed features with their 27 neighbours.
        unit: What an output of 1 of Conv3 is worth, in voxels of this level along x, y, z.

    Source: Xie, Gao, Zheng, BIASNet, Medical Image Analysis 2025, 103913, which publishes no equations; Deviations:
    H_{i+1} is brought to `channels` channels before it is upsampled, which saves memory on the finest grid; the unit,
    without which one optimiser step moves the anatomy 2^i times as far at level i as at level 0.
    """

    def __init__(
        self,
        channels: int,
        coarser_channels: int = 0,
        *,
        integration_steps: int = 0,
        correlation: bool = False,
        unit: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.register_buffer("unit", torch.tensor(unit).view(1, 3, 1, 1, 1), persistent=False)
        self.integration_steps = integration_steps
        self.correlation = correlation
        self.carry = convolution(coarser_channels, channels, 1) if coarser_channels else None
        inputs = (3 if coarser_channels else 2) * channels + (NEIGHBOURS if correlation else 0)
        self.estimate = nn.Sequential(ConvolutionBlock(inputs, channels), ConvolutionBlock(channels, channels))
        self.residual = convolution(channels, 3, 3)
        nn.init.normal_(self.residual.weight, std=RESIDUAL_STD)

    def forward(
        self, moving: Tensor, fixed: Tensor, field: Tensor | None, hidden: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Refine the field.

        Args:
            moving: Features of the moving image, shape (B, C, X, Y, Z).
            fixed: Features of the fixed image, same shape.
            field: Φ_{i+1}, shape (B, 3, X/2, Y/2, Z/2), or with axes that are not halved, in its own voxels; None at
                the coarsest level.
            hidden: H_{i+1}, shape (B, D, X/2, Y/2, Z/2) likewise; None at the coarsest level.

        Returns:
            Φ_i, shape (B, 3, X, Y, Z) in voxels of this level, float32; and H_i, shape (B, C, X, Y, Z).
        """
        previous = resize(field, moving.shape[2:]) if field is not None else None
        warped = warp(moving, previous) if previous is not None else moving
        inputs = [warped, fixed]
        if self.carry is not None and hidden is not None:
            inputs.append(upsample(self.carry(hidden), moving.shape[2:]))
        if self.correlation:
            inputs.append(local_correlation(warped, fixed))
        hidden = self.estimate(torch.cat(inputs, dim=1))
        with torch.autocast(hidden.device.type, enabled=False):  # a field in half precision is wrong by whole voxels
            residual = integrate_velocity(self.unit * self.residual(hidden.float()), self.integration_steps)
            return residual if previous is None else compose(residual, previous), hidden


class ProgressiveRegistration(nn.Module):
    """All levels, coarse to fine.

    Args:
        levels: One `RegistrationLevel` per level, finest first.
        checkpointing: Recompute activations in the backward pass to save memory.
    """

    def __init__(self, levels: Sequence[RegistrationLevel], checkpointing: bool = False) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.checkpointing = checkpointing

    def forward(self, moving: Sequence[Tensor], fixed: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Register two feature pyramids.

        Args:
            moving: Features of the moving image, finest first, at least as many as there are levels.
            fixed: Features of the fixed image, same shapes.

        Returns:
            Φ_0, Φ_1, …, Φ_i of the shape of level i, (B, 3, X_i, Y_i, Z_i), in voxels of that level, float32.
        """
        field = hidden = None
        fields: list[Tensor] = []
        for level in reversed(range(len(self.levels))):
            step = self.levels[level]
            field, hidden = recompute(step, moving[level], fixed[level], field, hidden, enabled=self.checkpointing)
            fields.append(field)
        return tuple(reversed(fields))


def local_correlation(moving: Tensor, fixed: Tensor) -> Tensor:
    """Correlate every fixed voxel with the 27 moving voxels around it.

    c_d(x) = cos(moving(x + d), fixed(x)), d in {-1, 0, 1}³, minus its mean over d, and scaled to unit variance over the
    whole volume: what counts is which neighbour matches better than the others. Beyond the grid features repeat.

    Args:
        moving: Features of shape (B, C, X, Y, Z).
        fixed: Same shape.

    Returns:
        Shape (B, 27, X, Y, Z), float32, d running fastest along z.

    Source: Sun et al., PWC-Net, CVPR 2018, arXiv:1709.02371 (cost volume). Deviation: cosine instead of product, mean
    over the neighbours removed, normalized.
    """
    sides = fixed.shape[2:]
    moving, fixed = (F.normalize(features.float(), dim=1, eps=1e-3) for features in (moving, fixed))
    padded = F.pad(moving, (1, 1, 1, 1, 1, 1), mode="replicate")
    volumes = []
    for offset in itertools.product(range(3), repeat=3):
        window = tuple(slice(start, start + side) for start, side in zip(offset, sides, strict=True))
        volumes.append((padded[:, :, window[0], window[1], window[2]] * fixed).sum(dim=1))
    volume = torch.stack(volumes, dim=1)
    return F.group_norm(volume - volume.mean(dim=1, keepdim=True), 1)
