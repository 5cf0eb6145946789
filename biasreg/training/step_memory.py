"""The peak memory of one real training step, on random images of the planned size."""

import ctypes
import platform
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from biasreg.core.parallel import GIB
from biasreg.losses.objective import ObjectiveSettings, PairBatch, objective
from biasreg.network.build import build_network
from biasreg.network.device import autocast
from biasreg.planning.plans import Configuration, NetworkPlans
from biasreg.training.averaging import WeightAverage
from biasreg.training.optimization import build_optimizer, take_step

WARM_STEPS = 2  # the optimiser's moments come with the first step, so that the second has the peak


class Memory(NamedTuple):
    """Memory of a process, or what torch holds of a GPU, in bytes."""

    current: int
    peak: int


def measure_step_gib(configuration: Configuration, device: torch.device) -> float:
    """Train two steps on random images, and measure the most memory that they take.

    The random state of torch is left as it was.

    Args:
        configuration: What is trained.
        device: Where.

    Returns:
        GiB: on CUDA what torch allocates, on a CPU under Linux what the process grows by at most; 0 where that is not
        known.

    Raises:
        torch.OutOfMemoryError: If the device's memory does not hold a step.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        known = reset_peak(device)
        before = read_memory(device).current
        try:
            _train(configuration, device)
            return max(read_memory(device).peak - before, 0) / GIB if known else 0.0
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()


def objective_settings(configuration: Configuration) -> ObjectiveSettings:
    """Take the settings of the loss from the plans.

    Args:
        configuration: What is trained.

    Returns:
        The settings.
    """
    plans = configuration.training
    return ObjectiveSettings(
        similarity=plans.similarity,
        window=plans.similarity_window_voxels,
        weights=plans.weights,
        spacing=configuration.preprocessing.spacing,
        num_labels=configuration.network.num_labels,
        labels_per_step=plans.labels_per_step,
    )


def random_pairs(network: NetworkPlans, size: Sequence[int], count: int, device: torch.device) -> PairBatch:
    """Make pairs of noise images; each label is a slab across the first axis, so that every label is in both.

    Args:
        network: Says how many channels and labels they have.
        size: Shape of the grid in voxels.
        count: Number of pairs.
        device: Where they go.

    Returns:
        The pairs.
    """
    shape = (count, network.in_channels, *size)
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    slabs = torch.arange(size[0], device=device) * network.num_labels // size[0]
    labels = slabs.view(1, 1, -1, 1, 1).expand(count, 1, *size).contiguous()
    mask = torch.ones(count, 1, *size, device=device)
    known = torch.ones(count, dtype=torch.bool, device=device)
    return PairBatch(images[0], images[1], labels, labels.clone(), known, known, mask, mask, mask, mask)


def reset_peak(device: torch.device) -> bool:
    """Forget the peak so far, and give unused memory back to the system.

    Returns:
        Whether that could be done.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # 5: reset VmHWM, see proc(5)
    except (OSError, AttributeError):  # another system than Linux with glibc, or a container that forbids it
        return False
    return True


def read_memory(device: torch.device) -> Memory:
    """Read the memory in use and its peak; elsewhere than on Linux and CUDA the peak is all that is known."""
    if device.type == "cuda":
        return Memory(torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device))
    if platform.system() == "Linux":
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        current, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return Memory(current, peak)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Memory(peak, peak)


def _train(configuration: Configuration, device: torch.device) -> None:
    network = build_network(configuration.network).to(device)
    optimizer = build_optimizer(network, configuration.training.learning_rate)
    settings, plans = objective_settings(configuration), configuration.training
    pairs = random_pairs(configuration.network, configuration.preprocessing.patch_size, plans.batch_size, device)
    average = WeightAverage(network, plans.averaging_decay) if plans.averaging_decay > 0 else None
    for step in range(WARM_STEPS):
        with autocast(device):
            generators = [torch.Generator().manual_seed(0) for _ in range(plans.batch_size)]
            terms = objective(network, pairs, settings, consistency_scale=1.0, generators=generators)
        take_step(terms, optimizer, plans.gradient_clip)
        if average is not None:
            average.update(network, step)
        del terms
