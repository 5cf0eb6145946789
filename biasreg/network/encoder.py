"""The weight-shared encoder: VoCo's Swin encoder, and a light residual pyramid with the same feature maps."""

import itertools
from collections.abc import Sequence

import torch
from monai.networks.blocks import UnetrBasicBlock
from monai.networks.nets.swin_unetr import BasicLayer, SwinTransformer, compute_mask, get_window_size
from torch import Tensor, nn
from torch.nn import functional as F

from biasreg.network.blocks import NEGATIVE_SLOPE, ConvolutionBlock, InstanceNorm, convolution, recompute

# Start (x, y, z) of each of the eight concatenated sub-grids, in the order of MONAI 1.4 and older, which VoCo's weights
# were trained with. (0, 1, 0) and (0, 0, 1) come twice, (1, 1, 0) and (0, 1, 1) never; MONAI 1.5 corrected that,
# and a file of VoCo's weights then still loads but computes something else.
MERGING_ORDER = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))
PATCH_SIZE = 2  # side in voxels of a Swin token, VoCo's
NORMALIZED_SKIPS = 3  # VoCo has convolution blocks on h0, h1 and h2 (encoder2, 3, 4) and on the deepest map (encoder10)


def encoder_channels(feature_size: int, stages: int) -> tuple[int, ...]:
    """Channels of an encoder's feature maps, finest first: f, f, 2f, 4f, ... 2^stages·f."""
    return (feature_size, *(feature_size * 2**stage for stage in range(stages + 1)))


class PatchMerging(nn.Module):
    """Halve a grid of tokens: concatenate neighbours, normalize, and project 8 C to 2 C channels.

    Args:
        dim: Channels C of the input.
        norm_layer: Makes the normalization of the last axis.
        spatial_dims: Only 3 is known.

    Source: Liu et al., Swin Transformer, ICCV 2021, arXiv:2103.14030; order of the neighbours as in MONAI ≤ 1.4, see
    `MERGING_ORDER`.
    """

    def __init__(self, dim: int, norm_layer: type[nn.LayerNorm] = nn.LayerNorm, spatial_dims: int = 3) -> None:
        super().__init__()
        if spatial_dims != 3:
            raise ValueError(f"patch merging has {spatial_dims} spatial axes, expected 3")
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(8 * dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Merge tokens of shape (B, X, Y, Z, C), with even X, Y, Z, to (B, X/2, Y/2, Z/2, 2C)."""
        neighbours = [tokens[:, x::2, y::2, z::2] for x, y, z in MERGING_ORDER]
        merged: Tensor = self.reduction(self.norm(torch.cat(neighbours, dim=-1)))
        return merged


class SwinStages(SwinTransformer):
    """MONAI's Swin Transformer v2 with one to four stages instead of always four; with four it is the same.

    The stages' blocks are called here one by one, because MONAI's own loop over them needs the package einops.
    """

    def forward(self, image: Tensor, checkpointing: bool = False) -> list[Tensor]:
        """Compute the hidden states.

        Args:
            image: Shape (B, C, X, Y, Z).
            checkpointing: Recompute the stages' convolutions in the backward pass.

        Returns:
            h0 … hn, h_k having shape (B, 2^k f, X/2^(k+1), Y/2^(k+1), Z/2^(k+1)), normalized over the channels.
        """
        hidden = self.patch_embed(image)
        states = [_normalize_channels(hidden)]
        for stage in range(1, self.num_layers + 1):
            convolutions = getattr(self, f"layers{stage}c")[0]
            hidden = recompute(convolutions, hidden, enabled=checkpointing)
            hidden = _attend(getattr(self, f"layers{stage}")[0], hidden)
            states.append(_normalize_channels(hidden))
        return states


class SwinEncoder(nn.Module):
    """The encoder of SwinUNETR (Swin Transformer v2), whose pretrained form is VoCo.

    Names and shapes of all parameters are those of SwinUNETR (`swinViT`, `encoder1`, …), so that a VoCo file loads
    without a translation table.

    Args:
        in_channels: Channels of the image.
        feature_size: Channels of the finest features; VoCo-B has 48.
        depths: Swin blocks per stage, one to four stages.
        heads: Attention heads per stage.
        window_size: Side of the attention window in tokens.
        checkpointing: Recompute activations in the backward pass to save memory.

    Source: Hatamizadeh et al., Swin UNETR, 2022, arXiv:2201.01266; He et al., SwinUNETR-V2, MICCAI 2023; Wu et al.,
    VoCo, CVPR 2024, arXiv:2402.17300. Deviations: fewer stages are possible; instance normalization of a single
    voxel, see `InstanceNorm`.
    """

    def __init__(
        self,
        in_channels: int,
        feature_size: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window_size: int,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.channels = encoder_channels(feature_size, len(depths))
        self.checkpointing = checkpointing
        self.swinViT = SwinStages(
            in_chans=in_channels,
            embed_dim=feature_size,
            window_size=(window_size,) * 3,
            patch_size=(PATCH_SIZE,) * 3,
            depths=tuple(depths),
            num_heads=tuple(heads),
            use_checkpoint=checkpointing,
            downsample=PatchMerging,
            use_v2=True,
        )
        self.encoder1 = _residual_block(in_channels, feature_size)
        self.skips = [f"encoder{index + 2}" for index in range(min(NORMALIZED_SKIPS, len(depths)))]
        for name, channels in zip(self.skips, self.channels[1:], strict=False):
            setattr(self, name, _residual_block(channels, channels))
        self.encoder10 = _residual_block(self.channels[-1], self.channels[-1])
        _replace_instance_norms(self)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            image: Shape (B, C, X, Y, Z), sides multiples of 2^(stages + 1).

        Returns:
            e0 … e(stages+1), e_k having `channels[k]` channels on the grid divided by 2^k.
        """
        states = self.swinViT(image, checkpointing=self.checkpointing)
        skips = [recompute(self.encoder1, image, enabled=self.checkpointing)]
        for name, state in zip(self.skips, states[:-1], strict=False):
            skips.append(recompute(getattr(self, name), state, enabled=self.checkpointing))
        plain = states[len(self.skips) : -1]  # VoCo's fourth stage, h3, has no convolution block
        return (*skips, *plain, recompute(self.encoder10, states[-1], enabled=self.checkpointing))


class ResidualEncoder(nn.Module):
    """A plain residual convolution pyramid with the feature maps of `SwinEncoder`, for small devices.

    Args:
        in_channels: Channels of the image.
        feature_size: Channels of the finest features.
        depths: Residual blocks per stage, one to four stages; the two finest maps have one block each, the finest
            a plain one.
        strides: Factor along x, y, z from each map to the next; 2 along all when None.
        checkpointing: Recompute activations in the backward pass to save memory.

    Source: He et al., Deep Residual Learning, CVPR 2016, arXiv:1512.03385; widths as in SwinUNETR.
    """

    def __init__(
        self,
        in_channels: int,
        feature_size: int,
        depths: Sequence[int],
        strides: Sequence[tuple[int, int, int]] | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.channels = encoder_channels(feature_size, len(depths))
        self.checkpointing = checkpointing
        self.stem = ConvolutionBlock(in_channels, feature_size)
        steps = strides or ((2, 2, 2),) * (len(depths) + 1)
        stages = []
        for (channels, out_channels), depth, step in zip(
            itertools.pairwise(self.channels), (1, *depths), steps, strict=True
        ):
            blocks = (ResidualBlock(out_channels) for _ in range(depth))
            stages.append(nn.Sequential(ConvolutionBlock(channels, out_channels, stride=step), *blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps; shapes as `SwinEncoder.forward`, with strides of 2 along all axes."""
        maps = [recompute(self.stem, image, enabled=self.checkpointing)]
        for stage in self.stages:
            maps.append(recompute(stage, maps[-1], enabled=self.checkpointing))
        return tuple(maps)


class ResidualBlock(nn.Module):
    """x + IN(Conv3(LReLU(IN(Conv3(x))))), then LReLU.

    Args:
        channels: Channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvolutionBlock(channels, channels)
        self.second = convolution(channels, channels, 3, bias=False)
        self.norm = InstanceNorm(channels, affine=True)

    def forward(self, features: Tensor) -> Tensor:
        """Map features of shape (B, C, X, Y, Z) to the same shape."""
        return F.leaky_relu(features + self.norm(self.second(self.first(features))), NEGATIVE_SLOPE)


def _residual_block(in_channels: int, out_channels: int) -> nn.Module:
    block: nn.Module = UnetrBasicBlock(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=3,
        stride=1,
        norm_name="instance",
        res_block=True,
    )
    return block


def _attend(stage: BasicLayer, features: Tensor) -> Tensor:
    """Run one Swin stage: (B, C, X, Y, Z) to (B, 2C, X/2, Y/2, Z/2)."""
    tokens = features.movedim(1, -1)  # (B, X, Y, Z, C)
    shape = tokens.shape[1:4]
    window, shift = get_window_size(shape, stage.window_size, stage.shift_size)
    padded = [-(-side // length) * length for side, length in zip(shape, window, strict=True)]
    mask = compute_mask(padded, window, shift, features.device) if any(shift) else None
    for block in stage.blocks:
        tokens = block(tokens, mask)
    merged: Tensor = stage.downsample(tokens)
    return merged.movedim(-1, 1).contiguous()  # (B, 2C, X/2, Y/2, Z/2)


def _normalize_channels(features: Tensor) -> Tensor:
    """Layer normalization over the channels, without parameters, of shape (B, C, X, Y, Z)."""
    return F.layer_norm(features.movedim(1, -1), features.shape[1:2]).movedim(-1, 1).contiguous()


def _replace_instance_norms(module: nn.Module) -> None:
    """Put `InstanceNorm` in place of torch's (both without parameters here), which refuses a map of one voxel."""
    for name, child in module.named_children():
        if type(child) is nn.InstanceNorm3d:
            setattr(module, name, InstanceNorm(child.num_features, eps=child.eps))
        else:
            _replace_instance_norms(child)
