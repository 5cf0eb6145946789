"""MAC: the intensity-wise features enhance the semantics-wise ones, level by level."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biasreg.network.blocks import ChannelNorm, InstanceNorm, convolution, recompute

LARGEST_HEAD = 16  # channels of an attention head
OUTPUT_STD = 0.01  # of the initial output weights: small, so that a new MAC nearly keeps the semantic features
FEED_FORWARD_EXPANSION = 2  # hidden channels of the feed-forward part per channel


class MAC(nn.Module):
    """Correlate semantic and intensity features by channel and spatial attention, and let a gate control their flow.

        O_c = attention over channels: Q from S, K and V from [S; T], L2-normalized over the voxels
        O_s = M ⊙ V_T,  M = σ(Conv1(ReLU(IN(Conv1[S, T, S⊙T]))))
        S'  = S + G ⊙ Conv1[O_c, O_s],  G = σ(Conv1[S, T])
        out = S' + FFN(LN(S'))                                      (the last part is optional)

    The cost is linear in the number of voxels.

    Args:
        channels: Channels of both features.
        feed_forward: Have the feed-forward part.

    Source: Xie, Gao, Zheng, BIASNet, Medical Image Analysis 2025, 103913, which publishes no equations; the attention
    over channels and the feed-forward part follow Restormer (Zamir et al., CVPR 2022, arXiv:2111.09881). Deviation
    from Restormer: the projections are without depth-wise convolution.
    """

    def __init__(self, channels: int, *, feed_forward: bool = True) -> None:
        super().__init__()
        self.heads = channels // head_size(channels)
        self.query = convolution(channels, channels, 1, bias=False)
        self.key = convolution(2 * channels, channels, 1, bias=False)
        self.value = convolution(2 * channels, channels, 1, bias=False)
        self.temperature = nn.Parameter(torch.ones(self.heads, 1, 1))
        self.intensity_value = convolution(channels, channels, 1)
        self.spatial = nn.Sequential(
            convolution(3 * channels, channels, 1, bias=False),
            InstanceNorm(channels, affine=True),
            nn.ReLU(inplace=True),
            convolution(channels, 1, 1),
        )
        self.output = convolution(2 * channels, channels, 1)
        nn.init.normal_(self.output.weight, std=OUTPUT_STD)
        self.gate = convolution(2 * channels, channels, 1)
        self.feed_forward = FeedForward(channels) if feed_forward else None

    def forward(self, semantic: Tensor, intensity: Tensor) -> Tensor:
        """Enhance semantic features (B, C, X, Y, Z) by intensity features of the same shape."""
        both = torch.cat([semantic, intensity], dim=1)
        by_channel = channel_attention(self.query(semantic), self.key(both), self.value(both), self.temperature)
        where = torch.sigmoid(self.spatial(torch.cat([both, semantic * intensity], dim=1)))
        by_place = where * self.intensity_value(intensity)
        gate = torch.sigmoid(self.gate(both))
        enhanced: Tensor = semantic + gate * self.output(torch.cat([by_channel, by_place], dim=1))
        return enhanced if self.feed_forward is None else self.feed_forward(enhanced)


class FeedForward(nn.Module):
    """x + Conv1(GELU(a) ⊙ b) with [a, b] = DepthwiseConv3(Conv1(LN(x))).

    Args:
        channels: Channels of input and output.

    Source: Zamir et al., Restormer, CVPR 2022, arXiv:2111.09881 (gated depth-wise feed-forward network).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = FEED_FORWARD_EXPANSION * channels
        self.norm = ChannelNorm(channels)
        self.expand = convolution(channels, 2 * hidden, 1)
        self.depthwise = nn.Conv3d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.contract = convolution(hidden, channels, 1)
        nn.init.normal_(self.contract.weight, std=OUTPUT_STD)

    def forward(self, features: Tensor) -> Tensor:
        """Map features of shape (B, C, X, Y, Z) to the same shape."""
        gate, value = self.depthwise(self.expand(self.norm(features))).chunk(2, dim=1)
        result: Tensor = features + self.contract(F.gelu(gate) * value)
        return result


class Concatenation(nn.Module):
    """Ablation of MAC: a 1×1×1 convolution of the concatenated features.

    Args:
        channels: Channels of both features and of the result.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = convolution(2 * channels, channels, 1)

    def forward(self, semantic: Tensor, intensity: Tensor) -> Tensor:
        """Mix semantic and intensity features of shape (B, C, X, Y, Z) to the same shape."""
        mixed: Tensor = self.mix(torch.cat([semantic, intensity], dim=1))
        return mixed


class Enhancement(nn.Module):
    """One MAC (or `Concatenation`) per registration level; with a single stream its features pass as they are.

    Args:
        levels: The module of each level, finest first.
        checkpointing: Recompute activations in the backward pass to save memory.
    """

    def __init__(self, levels: Sequence[nn.Module], checkpointing: bool = False) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.checkpointing = checkpointing

    def forward(self, semantic: tuple[Tensor, ...] | None, intensity: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        """Give the features that registration works on, finest first, from those of one or two decoders."""
        if semantic is not None and intensity is not None:
            pairs = zip(self.levels, semantic, intensity, strict=False)
            return tuple(recompute(level, s, t, enabled=self.checkpointing) for level, s, t in pairs)
        features = semantic if semantic is not None else intensity
        if features is None:
            raise ValueError("there are neither semantic nor intensity features; build at least one decoder")
        return features


def head_size(channels: int) -> int:
    """Largest divisor of the number of channels that is at most `LARGEST_HEAD`."""
    return next(size for size in range(min(LARGEST_HEAD, channels), 0, -1) if channels % size == 0)


def channel_attention(query: Tensor, key: Tensor, value: Tensor, temperature: Tensor) -> Tensor:
    """Attention among channels, softmax(τ · Q̂ K̂ᵀ) V with Q̂ and K̂ of unit length over the voxels.

    Args:
        query: Shape (B, C, X, Y, Z).
        key: Shape (B, C, X, Y, Z).
        value: Shape (B, C, X, Y, Z).
        temperature: Factor τ per head, shape (heads, 1, 1).

    Returns:
        Shape (B, C, X, Y, Z).

    Source: Zamir et al., Restormer, CVPR 2022, arXiv:2111.09881.
    """
    heads = temperature.shape[0]
    batch, channels = query.shape[:2]
    q, k, v = (t.reshape(batch, heads, channels // heads, -1) for t in (query, key, value))  # (B, heads, d, N)
    cosine = _unit(q) @ _unit(k).transpose(-2, -1)  # (B, heads, d, d)
    attention = torch.softmax(cosine * temperature, dim=-1).to(v.dtype)
    return (attention @ v).reshape(value.shape)


def _unit(vectors: Tensor) -> Tensor:
    """Scale to unit length over the last axis; the length is a float32 sum also under autocast."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True, dtype=torch.float32)
    return vectors / length.clamp_min(torch.finfo(torch.float32).eps).to(vectors.dtype)
