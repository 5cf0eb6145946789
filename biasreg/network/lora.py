"""Low-rank adaptation (LoRA) of a Swin encoder: small matrices train beside frozen weights."""

import math

import torch
from monai.networks.blocks import MLPBlock
from monai.networks.nets.swin_unetr import WindowAttention
from torch import Tensor, nn
from torch.nn import functional as F

ADAPTERS = ("lora_down", "lora_up")  # parameters that an adapted layer has beside those of its base


class LoraLinear(nn.Linear):
    """W x + b + (alpha / r) · B A x with W and b frozen, A of shape (r, in) and B of shape (out, r).

    The base keeps the names `weight` and `bias`, so that a file of the unadapted encoder fits the adapted one. B starts
    at zero: a new adapter changes nothing.

    Args:
        base: The layer; its parameters are taken over, and frozen.
        rank: r.
        alpha: Scale of the adapter.

    Source: Hu et al., LoRA, ICLR 2022, arXiv:2106.09685.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        # On the device "meta" nothing is allocated: what it would hold is the base's.
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.requires_grad_(False)
        self.scale = alpha / rank
        self.lora_down = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_up = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))  # as torch starts a linear layer

    def forward(self, features: Tensor) -> Tensor:
        """Map features of shape (…, in) to (…, out)."""
        adapted = F.linear(F.linear(features, self.lora_down), self.lora_up)
        return super().forward(features) + self.scale * adapted

    def merged(self) -> nn.Linear:
        """Return a plain layer with weights W + (alpha / r) · B A, which computes the same."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        with torch.no_grad():
            plain.weight = nn.Parameter(self.weight + self.scale * self.lora_up @ self.lora_down)
        plain.bias = self.bias
        return plain.requires_grad_(False)


def add_lora(encoder: nn.Module, rank: int, alpha: float, *, mlp: bool) -> None:
    """Freeze an encoder, and put adapters into the attention of all its Swin blocks.

    Args:
        encoder: A Swin encoder, changed in place.
        rank: Rank of the adapters.
        alpha: Their scale.
        mlp: Adapt the two layers of the blocks' MLPs too.
    """
    encoder.requires_grad_(False)
    for module in list(encoder.modules()):
        names: tuple[str, ...] = ()
        if isinstance(module, WindowAttention):
            names = ("qkv", "proj")
        elif mlp and isinstance(module, MLPBlock):
            names = ("linear1", "linear2")
        for name in names:
            setattr(module, name, LoraLinear(getattr(module, name), rank, alpha))


def merge_lora(module: nn.Module) -> None:
    """Fold all adapters into their frozen weights, for inference.

    Args:
        module: A network, changed in place: plain linear layers take the place of adapted ones, without gradient.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLinear):
                setattr(parent, name, child.merged())
