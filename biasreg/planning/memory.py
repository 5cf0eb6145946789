"""How many voxels a device can train on."""

from typing import Literal

from biasreg.core.parallel import GIB

# Peak memory of one training step (both images, the ARDC pass, gradients), per voxel of the grid and per channel of the
# finest decoder features. Measured on the CPU build by `benchmarks/training_step.py`; the activations of level 0
# dominate, so the figure holds from narrow to wide networks within about a factor of 1.5.
BYTES_PER_VOXEL_AND_CHANNEL = 2250.0
# A CPU is bounded by time, not by memory: with this many voxels a step of the narrow network takes about 1.8 seconds
# on two cores.
CPU_VOXEL_BUDGET = 80_000
# Memory that is left to the framework, the weights and the optimiser.
RESERVED_GIB = 1.5


def voxel_budget(device: Literal["cpu", "cuda"], memory_gib: float, channels: int) -> int:
    """Number of voxels of the canonical grid that one training step can hold.

    Args:
        device: Device that will train.
        memory_gib: Its memory in GiB.
        channels: Channels of the finest decoder features.

    Returns:
        Number of voxels, at least 32³.
    """
    by_memory = int(max(memory_gib - RESERVED_GIB, 0.5) * GIB / (BYTES_PER_VOXEL_AND_CHANNEL * channels))
    budget = min(by_memory, CPU_VOXEL_BUDGET) if device == "cpu" else by_memory
    return max(budget, 32**3)


def step_memory_gib(voxels: int, channels: int) -> float:
    """Predict the peak memory of one training step.

    Args:
        voxels: Voxels of the canonical grid.
        channels: Channels of the finest decoder features.

    Returns:
        GiB.
    """
    return RESERVED_GIB + voxels * channels * BYTES_PER_VOXEL_AND_CHANNEL / GIB
