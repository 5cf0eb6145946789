"""A moving average of the weights, which is steadier than the weights of any one step."""

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """The moving average of a network's trained parameters.

    average ← d · average + (1 − d) · weights,   d = min(decay, (1 + n) / (10 + n)) after n steps, so that the random
    weights of the beginning are soon forgotten.

    Args:
        network: The network that trains.
        decay: Share of the former average that is kept, in (0, 1).

    Attributes:
        network: A copy of the network that holds the average; what does not train is shared with it.

    Source: Polyak and Juditsky, SIAM Journal on Control and Optimization 1992; the rising decay is that of TensorFlow's
    ExponentialMovingAverage.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        frozen = {id(parameter): parameter for parameter in network.parameters() if not parameter.requires_grad}
        self.network = copy.deepcopy(network, frozen)  # the memory of what is frozen is shared
        self._decay = decay
        self._names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        averaged = dict(self.network.named_parameters())
        self._averaged = [averaged[name] for name in self._names]

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after a step.

        Args:
            network: The network that trains.
            step: Number of steps before it.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        current = [parameter for parameter in network.parameters() if parameter.requires_grad]
        for averaged, parameter in zip(self._averaged, current, strict=True):
            averaged.lerp_(parameter, 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """Give the averaged parameters by name."""
        return dict(zip(self._names, self._averaged, strict=True))

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Go back to averaged parameters that `state` gave."""
        for name, parameter in zip(self._names, self._averaged, strict=True):
            parameter.copy_(state[name])
