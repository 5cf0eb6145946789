"""The small parts that several boxes of the network are made of."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

NEGATIVE_SLOPE = 0.1  # of every LeakyReLU that is not VoCo's; VoxelMorph's and TransMorph's decoders use 0.1 to 0.2
Result = TypeVar("Result")
Stride = int | tuple[int, int, int]


class InstanceNorm(nn.InstanceNorm3d):
    """Instance normalization that is also defined on a map of a single voxel.

    Each channel of each sample is normalized over its voxels. One voxel has no spread, so a map of 1×1×1 (the deepest
    one of a small input) is normalized over its channels instead; zero would be the only other value that
    normalization over voxels could give, and would cut the deepest features off.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Normalize features of shape (B, C, X, Y, Z)."""
        if features.shape[2:].numel() == 1:
            return F.group_norm(features, 1, self.weight, self.bias, self.eps)
        return super().forward(features)


class ChannelNorm(nn.LayerNorm):
    """Layer normalization of each voxel over its channels, for maps of shape (B, C, X, Y, Z)."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalize features of shape (B, C, X, Y, Z)."""
        return super().forward(features.movedim(1, -1)).movedim(-1, 1).contiguous()


# A single sample with at most so many values in channels × X × Y does not go to oneDNN (ATen's use_mkldnn, torch 2.13).
ONEDNN_THRESHOLD = 20480


class PointwiseConvolution(nn.Conv3d):
    """1×1×1 convolution as a matrix product, which on a CPU takes about a third of the time of torch's convolution."""

    def forward(self, features: Tensor) -> Tensor:
        """Mix the channels of features of shape (B, C, X, Y, Z)."""
        weight = self.weight.flatten(1).expand(features.shape[0], -1, -1)  # (B, out, in)
        voxels = features.flatten(2)  # (B, in, N)
        if self.bias is None:
            mixed = torch.bmm(weight, voxels)
        else:
            mixed = torch.baddbmm(self.bias[None, :, None], weight, voxels)
        return mixed.unflatten(2, features.shape[2:])


class ConvolutionBlock(nn.Sequential):
    """3×3×3 convolution, instance normalization, LeakyReLU.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel, odd.
        stride: 2 halves the grid; three numbers do so along the axes of their own.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int = 3, stride: Stride = 1) -> None:
        super().__init__(
            convolution(in_channels, out_channels, kernel_size, stride=stride, bias=False),
            InstanceNorm(out_channels, affine=True),
            nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
        )


class CubicConvolution(nn.Conv3d):
    """A zero-padded 3×3×3 convolution of stride 1 that is fast for a single sample on a CPU too.

    For one sample of few channels PyTorch leaves oneDNN for a generic kernel: forward and backward of 8 to 8 channels
    on 40×32×40 voxels take 134 ms on one core instead of 23. Two overlapping halves as a batch of two keep it there.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, X, Y, Z) to (B, D, X, Y, Z)."""
        batch, channels, x, y, z = features.shape
        is_generic = batch == 1 and channels * x * y <= ONEDNN_THRESHOLD and features.device.type == "cpu"
        if not is_generic or z < 2:
            return super().forward(features)
        padded = F.pad(features, (1, 1 + z % 2))  # (1, C, X, Y, 2·half + 2)
        half = (z + 1) // 2
        halves = torch.cat([padded[..., : half + 2], padded[..., half:]])  # (2, C, X, Y, half + 2)
        mapped = F.conv3d(halves, self.weight, self.bias, padding=(1, 1, 0))  # (2, D, X, Y, half)
        return torch.cat([mapped[:1], mapped[1:]], dim=-1)[..., :z]


def convolution(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: Stride = 1, bias: bool = True
) -> nn.Conv3d:
    """Make a zero-padded convolution with He's initialization and zero bias.

    Source: He et al., Delving Deep into Rectifiers, ICCV 2015, arXiv:1502.01852.
    """
    kinds: dict[tuple[int, Stride], type[nn.Conv3d]] = {(1, 1): PointwiseConvolution, (3, 1): CubicConvolution}
    kind = kinds.get((kernel_size, stride), nn.Conv3d)
    layer = kind(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=bias)
    nn.init.kaiming_normal_(layer.weight, a=NEGATIVE_SLOPE)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def upsample(features: Tensor, shape: Sequence[int]) -> Tensor:
    """Bring (B, C, X, Y, Z) to a finer grid of the given shape, trilinear with half-voxel centres."""
    return F.interpolate(features, size=tuple(shape), mode="trilinear", align_corners=False)


def recompute(function: Callable[..., Result], *inputs: Tensor | int | None, enabled: bool) -> Result:
    """Call a function and, when enabled, keep only its inputs and compute its inside again in the backward pass.

    Args:
        function: Deterministic function of the inputs, usually a module.
        inputs: What it is called with.
        enabled: Without it this is a plain call.

    Returns:
        What the function returns, with the same values and gradients either way.
    """
    if not (enabled and torch.is_grad_enabled()):
        return function(*inputs)
    result: Result = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result
