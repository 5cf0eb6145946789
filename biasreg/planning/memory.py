"""How much memory a training step takes: its terms, weighed by what was measured."""

from typing import NamedTuple

import numpy as np

from biasreg.core.parallel import GIB
from biasreg.planning.network_rules import Device
from biasreg.planning.plans import Configuration, NetworkPlans

# A CPU is bounded by time, not by memory: with this many voxels a step takes about two seconds on one core.
CPU_VOXEL_BUDGET = 80_000
# Of a device's memory: the rest goes to the system, to fragments, and to what the model does not know.
USABLE = {"cpu": 0.8, "cuda": 0.92}

# Bytes that one of each term takes, by device and checkpointing, in the order of `StepTerms`. CPU: fitted to measured
# peaks of training steps of 57 networks, plus 4 % (12 % with checkpointing) for what these networks were given before
# the measurement (documentation/explanation/planning-rules.md). CUDA: fitted to the sizes of the
# tensors that live at the same time in 40 networks in bfloat16, plus 15 % for the allocator and 0.5 GiB for the
# context; not measured on a GPU.
BYTES: dict[tuple[Device, bool], tuple[float, ...]] = {
    ("cpu", False): (81.6, 0.0, 523.0, 21.4, 920.0, 331.0, 26.9, 26.7, 0.0, 1.23e8),
    ("cpu", True): (2.24, 142.0, 101.0, 2.91, 240.0, 1880.0, 156.0, 0.0, 81.6, 2.16e8),
    ("cuda", False): (121.0, 235.0, 0.0, 20.4, 0.0, 0.0, 0.0, 207.0, 50.0, 5.9e8),
    ("cuda", True): (0.0, 17.8, 0.0, 4.7, 0.0, 1850.0, 0.0, 0.0, 41.0, 5.4e8),
}


class StepTerms(NamedTuple):
    """What the memory of a training step grows with, in numbers (of values, not of bytes).

    Attributes:
        fine_features: Channels times voxels of the encoder's finest map.
        features: The same of its coarser maps, each as often as its stage has blocks.
        decoded: Channels times voxels of the maps of one decoder, all levels.
        attention: Entries of the attention matrices of all windows.
        voxels: Voxels of the grid.
        grid: The same, but once for both passes.
        overlap: Voxels times labels in the overlap term.
        classes: Voxels times classes of the segmentation head.
        weights: Parameters of encoder and decoders, about.
        fixed: 1: what does not grow.
    """

    fine_features: float
    features: float
    decoded: float
    attention: float
    voxels: float
    grid: float
    overlap: float
    classes: float
    weights: float
    fixed: float


def usable_memory_gib(device: Device, memory_gib: float) -> float:
    """Tell how much of a device's memory a training step may take.

    Args:
        device: Device that will train.
        memory_gib: Its memory.

    Returns:
        GiB.
    """
    return USABLE[device] * memory_gib


def step_memory_gib(configuration: Configuration, device: Device) -> float:
    """Predict the peak memory of one training step: both passes (that of ARDC too), losses, gradients, optimiser.

    Args:
        configuration: What is trained.
        device: Where: `cuda` computes in bfloat16 where that is safe, `cpu` in float32.

    Returns:
        GiB. `biasreg_check_memory` compares it with a real step. The frozen weights of an adapted encoder have neither
        gradient nor optimiser state; they are counted as if they had, so that such a step takes less than this.
    """
    terms = step_terms(configuration)
    bytes_each = BYTES[device, configuration.network.checkpointing]
    return sum(each * term for each, term in zip(bytes_each, terms, strict=True)) / GIB


def step_terms(configuration: Configuration) -> StepTerms:
    """Count what the memory of a training step grows with.

    Args:
        configuration: What is trained.

    Returns:
        The terms, over all pairs of a step and, but for `grid`, `overlap` and `classes`, both passes of ARDC.
    """
    network, training = configuration.network, configuration.training
    grid = np.array(configuration.preprocessing.patch_size)
    levels = len(network.decoder_channels)
    voxels = [float(np.prod(grid / network.encoder.factors(level))) for level in range(levels)]
    widths = [network.encoder.feature_size * 2 ** max(level - 1, 0) for level in range(levels)]
    blocks = (1, 1, *network.encoder.depths)
    passes = training.batch_size * (2 if training.weights.consistency > 0 and network.num_labels > 1 else 1)
    maps = [count * width * depth for count, width, depth in zip(voxels, widths, blocks, strict=True)]
    overlap = min(network.num_labels - 1, training.labels_per_step)
    classes = network.num_labels * voxels[network.segmentation_level] if network.num_labels > 1 else 0.0
    return StepTerms(
        fine_features=passes * maps[0],
        features=passes * sum(maps[1:]),
        decoded=passes * sum(count * width for count, width in zip(voxels, network.decoder_channels, strict=True)),
        attention=passes * _attention_entries(network, grid, voxels),
        voxels=passes * voxels[0],
        grid=training.batch_size * voxels[0],
        overlap=training.batch_size * voxels[0] * overlap,
        classes=training.batch_size * classes,
        weights=_weights(network),
        fixed=1.0,
    )


def _attention_entries(network: NetworkPlans, grid: np.ndarray, voxels: list[float]) -> float:
    """Entries of the attention matrices: for each token and head, the tokens of its window."""
    encoder = network.encoder
    if encoder.family != "swin":
        return 0.0
    entries = 0.0
    for stage, (heads, blocks) in enumerate(zip(encoder.heads, encoder.depths, strict=True)):
        sides = grid // encoder.factors(stage + 1)
        window = float(np.prod(np.minimum(sides, encoder.window_size)))
        entries += voxels[stage + 1] * heads * blocks * window
    return entries


def _weights(network: NetworkPlans) -> float:
    """Parameters of the 3×3×3 convolutions that most weights belong to, as in a residual block for each map."""
    encoder = network.encoder
    widths = [encoder.feature_size * 2 ** max(level - 1, 0) for level in range(len(network.decoder_channels))]
    blocks = (1, 1, *encoder.depths)
    encoded = sum(2 * 27 * width**2 * depth for width, depth in zip(widths, blocks, strict=True))
    return float(encoded + sum(2 * 4 * 27 * width**2 for width in network.decoder_channels))
