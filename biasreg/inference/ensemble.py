"""Several networks, one field."""

from collections.abc import Sequence

import torch
from torch import Tensor

from biasreg.network.biasnet import BIASNet
from biasreg.network.device import autocast


@torch.inference_mode()
def ensemble_displacement(networks: Sequence[BIASNet], moving: Tensor, fixed: Tensor) -> Tensor:
    """Average the displacement fields of the networks.

    Args:
        networks: At least one network, in evaluation mode.
        moving: (1, C, X, Y, Z) in [0, 1].
        fixed: (1, C, X, Y, Z) in [0, 1].

    Returns:
        (1, 3, X, Y, Z) float32, in voxels.
    """
    total = torch.zeros((1, 3, *fixed.shape[2:]), device=fixed.device)
    for network in networks:
        with autocast(fixed.device):
            total += network(moving, fixed).displacement.float()
    return total / len(networks)
