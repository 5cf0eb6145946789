"""BIAF: bidirectional feature alignment and fusion of a deep and a skip feature map."""

import torch
from torch import Tensor, nn

from biasreg.network.blocks import ConvolutionBlock, convolution, upsample
from biasreg.spatial.warp import identity_grid, sample


class BIAF(nn.Module):
    """One decoder step: align deep and skip features to each other, then fuse them.

        P = Conv1(X_deep);  U = up(P);  S = skip
        [Δ_deep, Δ_skip] = Conv3(LReLU(IN(Conv3[U, S])))          voxels of the skip's grid, zero at the start
        Ũ(x) = P at x + Δ_deep(x);  S̃(x) = S(x + Δ_skip(x))
        g = σ(Conv3[Ũ, S̃]);  F = g·Ũ + (1 − g)·S̃;  X = F + 2×(Conv3, IN, LReLU)(F)

    Args:
        deep_channels: Channels of the deep features.
        channels: Channels of the skip features and of the result.
        aligned: Learn the offsets; without them Δ = 0 (plain gated fusion), and nothing is sampled.

    Source: Xie, Gao, Zheng, BIASNet, Medical Image Analysis 2025, 103913, which publishes no equations; offsets and
    gate follow AlignSeg (Huang et al., TPAMI 2021, arXiv:2003.00872) and SFNet (Li et al., ECCV 2020,
    arXiv:2002.10120).
    """

    def __init__(self, deep_channels: int, channels: int, *, aligned: bool = True) -> None:
        super().__init__()
        self.project = convolution(deep_channels, channels, 1)
        self.offsets = _offset_branch(channels) if aligned else None
        self.gate = convolution(2 * channels, channels, 3)
        self.refine = nn.Sequential(ConvolutionBlock(channels, channels), ConvolutionBlock(channels, channels))

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """Fuse two feature maps.

        Args:
            deep: Shape (B, D, X/2, Y/2, Z/2), or with axes that are not halved.
            skip: Shape (B, C, X, Y, Z).

        Returns:
            Shape (B, C, X, Y, Z).
        """
        projected = self.project(deep)
        upsampled = upsample(projected, skip.shape[2:])
        if self.offsets is not None:
            offsets = self.offsets(torch.cat([upsampled, skip], dim=1))
            upsampled, skip = align(projected, skip, offsets)
        gate = torch.sigmoid(self.gate(torch.cat([upsampled, skip], dim=1)))
        fused = skip + gate * (upsampled - skip)
        refined: Tensor = fused + self.refine(fused)
        return refined


def align(deep: Tensor, skip: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Sample deep and skip features at the positions that their offsets point to.

    Along a halved axis the centre of voxel x of the fine grid lies at (x + 0.5) / 2 − 0.5 of the coarse one, so that
    zero offsets give the trilinear upsampling of `deep`, and `skip` itself.

    Args:
        deep: Shape (B, C, X/2, Y/2, Z/2), or with axes that are not halved.
        skip: Shape (B, C, X, Y, Z).
        offsets: Shape (B, 6, X, Y, Z), Δ_deep then Δ_skip, in voxels of the skip's grid.

    Returns:
        Both features on the skip's grid, shape (B, C, X, Y, Z).
    """
    deep_offset, skip_offset = offsets.float().chunk(2, dim=1)
    grid = identity_grid(skip.shape[2:], device=skip.device)
    factor = grid.new_tensor(skip.shape[2:]) / grid.new_tensor(deep.shape[2:])  # (3,): 2, or 1 where not halved
    aligned_deep = sample(deep, (grid + deep_offset + 0.5) / factor.view(1, 3, 1, 1, 1) - 0.5)
    aligned_skip = sample(skip, grid + skip_offset)
    return aligned_deep, aligned_skip


def _offset_branch(channels: int) -> nn.Sequential:
    last = convolution(channels, 6, 3)
    nn.init.zeros_(last.weight)
    return nn.Sequential(ConvolutionBlock(2 * channels, channels), last)
