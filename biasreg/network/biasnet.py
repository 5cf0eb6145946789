"""BIASNet: the whole network, as Figure 2 of the paper draws it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from biasreg.network.dual_decoder import DualDecoder
from biasreg.network.mac import Enhancement
from biasreg.network.progressive import ProgressiveRegistration


class BIASNetOutput(NamedTuple):
    """What the network says about a batch of B pairs.

    Attributes:
        displacement: Φ_0, shape (B, 3, X, Y, Z) in voxels, float32: warped(x) = moving(x + u(x)).
        fields: Φ of every level, index = level (0 finest), each in voxels of its own level.
        moving_logits: Segmentation logits of the moving image, shape (B, K, …) on the grid of the segmentation level;
            None without labels or without semantics-wise decoder.
        fixed_logits: The same of the fixed image.
    """

    displacement: Tensor
    fields: tuple[Tensor, ...]
    moving_logits: Tensor | None
    fixed_logits: Tensor | None


class BIASNet(nn.Module):
    """Register pairs of images by bidirectionally aligned, semantics-guided features.

    Args:
        encoder: Turns images (B, C, X, Y, Z) into feature maps, finest first.
        decoder: Turns these into semantics-wise and intensity-wise features and segmentation logits.
        enhancement: Lets the intensity-wise features enhance the semantics-wise ones.
        registration: Turns the features of both images into the fields of all levels.
        divisor: Sides of the images along x, y, z must be multiples of these.

    Source: Xie, Gao, Zheng, BIASNet: A Bidirectional Feature Alignment and Semantics-guided Network for
    Weakly-Supervised Medical Image Registration, Medical Image Analysis 2025, 103913.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: DualDecoder,
        enhancement: Enhancement,
        registration: ProgressiveRegistration,
        divisor: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.enhancement = enhancement
        self.registration = registration
        self.divisor = divisor

    def forward(self, moving: Tensor, fixed: Tensor) -> BIASNetOutput:
        """Register each moving image to its fixed image.

        Both images pass encoder and decoders in one batch. No layer mixes the samples of a batch.

        Args:
            moving: Shape (B, C, X, Y, Z), sides multiples of `divisor`, intensities in [0, 1].
            fixed: Same shape and range.

        Returns:
            Fields and segmentation logits.

        Raises:
            ValueError: When the shapes differ or a side is no multiple of `divisor`.
        """
        self._check(moving, fixed)
        maps = self.encoder(torch.cat([moving, fixed]))
        semantic, intensity, logits = self.decoder(maps)
        features = self.enhancement(semantic, intensity)
        moving_features, fixed_features = zip(*(level.chunk(2) for level in features), strict=True)
        fields = self.registration(moving_features, fixed_features)
        moving_logits, fixed_logits = logits.chunk(2) if logits is not None else (None, None)
        return BIASNetOutput(fields[0], fields, moving_logits, fixed_logits)

    def _check(self, moving: Tensor, fixed: Tensor) -> None:
        if moving.shape != fixed.shape:
            raise ValueError(f"moving has shape {tuple(moving.shape)}, fixed {tuple(fixed.shape)}; they must be equal")
        size = tuple(fixed.shape[2:])
        if len(size) != 3 or any(side % divisor for side, divisor in zip(size, self.divisor, strict=True)):
            raise ValueError(
                f"the images have size {size}, but BIASNet needs three sides that are multiples of {self.divisor}; "
                "pad or crop them"
            )
