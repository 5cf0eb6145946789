"""Networks of others with the arguments and the output of biasreg's, of which they have the field alone.

Source: VoxelMorph 0.3.4 from PyPI (Balakrishnan et al., IEEE TMI 2019, arXiv:1809.05231); MONAI's SwinUNETR
(Hatamizadeh et al., arXiv:2201.01266), about as large as TransMorph (Chen et al., Medical Image Analysis 2022: 47
million parameters).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Peer = Literal["voxelmorph", "swin_unetr"]

# Encoder and decoder of VoxelMorph's paper, without the two further convolutions at full resolution.
VOXELMORPH_FEATURES = [[16, 32, 32, 32], [32, 32, 32, 32]]
VOXELMORPH_INTEGRATION_STEPS = 7
SWIN_FEATURE_SIZE = 48


@dataclass(frozen=True)
class Output:
    """What biasreg expects of a network: a field alone."""

    displacement: Tensor
    moving_logits: None = None
    fixed_logits: None = None

    @property
    def fields(self) -> tuple[Tensor]:
        """There is one level."""
        return (self.displacement,)


class VoxelMorph(nn.Module):
    """VoxelMorph's network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        from voxelmorph.nn.models import VxmPairwise  # noqa: PLC0415  it is not there for the other network

        steps = VOXELMORPH_INTEGRATION_STEPS
        self.network = VxmPairwise(3, channels, channels, VOXELMORPH_FEATURES, integration_steps=steps)

    def forward(self, moving: Tensor, fixed: Tensor) -> Output:
        """Give the displacement in voxels, which means to both what it means to the other."""
        return Output(self.network(moving, fixed))


class SwinRegistration(nn.Module):
    """A SwinUNETR that takes both images as channels and gives the displacement."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        from monai.networks.nets import SwinUNETR  # noqa: PLC0415  it needs einops

        self.network = SwinUNETR(2 * channels, 3, feature_size=SWIN_FEATURE_SIZE)

    def forward(self, moving: Tensor, fixed: Tensor) -> Output:
        """Give the displacement in voxels; sides of the grid are multiples of 32, at least 64."""
        return Output(self.network(torch.cat([moving, fixed], dim=1)))


def build_peer(peer: Peer, channels: int) -> nn.Module:
    """Build the network of a peer, with new weights from torch's global generator."""
    return VoxelMorph(channels) if peer == "voxelmorph" else SwinRegistration(channels)
