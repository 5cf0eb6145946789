"""The dual decoder: a semantics-wise and an intensity-wise decoder, each shared by the moving and the fixed image."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from biasreg.network.biaf import BIAF
from biasreg.network.blocks import ConvolutionBlock, convolution, recompute


class DualFeatures(NamedTuple):
    """What the two decoders see in the images.

    Attributes:
        semantic: X_0, X_1, … of the semantics-wise decoder, X_i of shape (B, c_i, X/2^i, Y/2^i, Z/2^i), or None.
        intensity: The same of the intensity-wise decoder, or None.
        logits: Segmentation logits, shape (B, K, …) on the grid of the segmentation level, or None.
    """

    semantic: tuple[Tensor, ...] | None
    intensity: tuple[Tensor, ...] | None
    logits: Tensor | None


class Decoder(nn.Module):
    """Fuse the encoder's feature maps from the deepest to the finest by BIAF.

    Args:
        encoder_channels: Channels of the encoder's maps, finest first.
        channels: Channels c_i of the decoder's features, finest first, one per map.
        biaf: Learn alignment offsets (False: plain gated fusion).
        checkpointing: Recompute activations in the backward pass to save memory.
    """

    def __init__(
        self, encoder_channels: Sequence[int], channels: Sequence[int], *, biaf: bool, checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.lateral = nn.ModuleList(
            ConvolutionBlock(in_channels, out_channels, kernel_size=1)
            for in_channels, out_channels in zip(encoder_channels, channels, strict=True)
        )
        self.fusion = nn.ModuleList(
            BIAF(deep_channels, skip_channels, aligned=biaf)
            for skip_channels, deep_channels in itertools.pairwise(channels)
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Decode the encoder's maps (finest first) to X_0, X_1, …, of the same grids and `channels` channels."""
        deepest = len(self.fusion)
        features = [self.lateral[deepest](maps[deepest])]
        for level in reversed(range(deepest)):
            features.append(recompute(self._fuse, level, features[-1], maps[level], enabled=self.checkpointing))
        return tuple(reversed(features))

    def _fuse(self, level: int, deep: Tensor, skip: Tensor) -> Tensor:
        fused: Tensor = self.fusion[level](deep, self.lateral[level](skip))
        return fused


class DualDecoder(nn.Module):
    """The semantics-wise and the intensity-wise decoder, and the segmentation head on the semantic features.

    Args:
        semantic: The decoder that segmentation supervises too, or None (ablation).
        intensity: The decoder that learns from registration alone, or None (ablation).
        segmentation_level: Level whose semantic features the segmentation head reads.
        num_labels: Classes with background; with 1 there is nothing to segment, and no head.
        segmentation_channels: Channels of the semantic features at that level.

    Source: Xie, Gao, Zheng, BIASNet, Medical Image Analysis 2025, 103913.
    """

    def __init__(
        self,
        semantic: Decoder | None,
        intensity: Decoder | None,
        *,
        segmentation_level: int,
        segmentation_channels: int,
        num_labels: int,
    ) -> None:
        super().__init__()
        self.semantic = semantic
        self.intensity = intensity
        self.segmentation_level = segmentation_level
        segments = semantic is not None and num_labels > 1
        self.segmentation_head = convolution(segmentation_channels, num_labels, 1) if segments else None

    def forward(self, maps: Sequence[Tensor]) -> DualFeatures:
        """Decode the encoder's maps, finest first."""
        semantic = self.semantic(maps) if self.semantic is not None else None
        intensity = self.intensity(maps) if self.intensity is not None else None
        logits = None
        if semantic is not None and self.segmentation_head is not None:
            logits = self.segmentation_head(semantic[self.segmentation_level])
        return DualFeatures(semantic, intensity, logits)
