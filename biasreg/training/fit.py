"""Does it fit? One real step is measured before training; what does not fit gives way in the documented order."""

import logging
from collections.abc import Iterator
from typing import NamedTuple

import torch

from biasreg.core.errors import TrainingError
from biasreg.core.parallel import available_memory_gib
from biasreg.core.paths import Roots, find_dataset
from biasreg.network.device import is_out_of_memory, select_device
from biasreg.planning.consistency import check_configuration
from biasreg.planning.fallback import fallbacks
from biasreg.planning.files import configuration_of, read_dataset_plans
from biasreg.planning.memory import step_memory_gib
from biasreg.planning.plans import Configuration
from biasreg.training.step_memory import measure_step_gib

logger = logging.getLogger(__name__)


class Fitted(NamedTuple):
    """A configuration that fits.

    Attributes:
        configuration: The configuration.
        steps: What it gave up, in order; empty when all fits as planned.
        predicted_gib: Peak memory of a step as planning predicts it.
        measured_gib: Peak memory as measured; 0 where that is not known.
    """

    configuration: Configuration
    steps: tuple[str, ...]
    predicted_gib: float
    measured_gib: float


def fit_to_device(configuration: Configuration, device: torch.device) -> Fitted:
    """Measure a training step, and give up what does not fit.

    On a CPU, where a process that takes too much is killed without a word, what is predicted not to fit is not tried.

    Args:
        configuration: What was planned.
        device: Where it is trained.

    Returns:
        The first configuration that fits.

    Raises:
        TrainingError: If not even the smallest one does.
    """
    steps: tuple[str, ...] = ()
    candidates = fallbacks(configuration)
    while True:
        predicted = predicted_gib(configuration, device)
        measured = _try(configuration, device, predicted)
        if measured is not None:
            return Fitted(configuration, steps, predicted, measured)
        smaller = next(candidates, None)
        if smaller is None:
            raise TrainingError(
                f"the memory of {device} does not hold a training step, not even one that gives up "
                f"{', '.join(steps)} · free the device, or plan for less memory (-gpu_memory_target)"
            )
        configuration, steps = smaller.configuration, (*steps, smaller.step)
        logger.warning("a training step does not fit the memory of %s; falling back: %s", device, smaller.step)


def check_memory(
    roots: Roots, dataset: str, plans_name: str, configuration: str | None = None, device: str | None = None
) -> Iterator[str]:
    """Compare predicted with measured peak memory; needs plans, but no preprocessed cases.

    Args:
        roots: Root folders.
        dataset: Dataset id or name.
        plans_name: Name of the plans.
        configuration: Configuration; None for all.
        device: `cuda`, `mps` or `cpu`; None for the best there is.

    Yields:
        One line per configuration.

    Raises:
        DatasetError: If the dataset has no preprocessed folder.
        PlansError: If plans or configuration are missing or contradict themselves.
    """
    folder = find_dataset(dataset, roots.preprocessed)
    plans, target = read_dataset_plans(folder, plans_name, dataset), select_device(device)
    for name in [configuration] if configuration else list(plans.configurations):
        made = configuration_of(plans, name, folder)
        check_configuration(name, made)
        predicted = predicted_gib(made, target)
        measured = _try(made, target, predicted)
        size = "×".join(str(side) for side in made.preprocessing.patch_size)
        line = f"{name} ({size}, {made.training.batch_size} pair(s)) on {target}: {predicted:.2f} GiB predicted, "
        if measured is None:
            yield line + "does not fit; training would fall back"
        else:
            yield line + (
                f"{measured:.2f} GiB measured ({100 * (predicted / measured - 1):+.0f} %)"
                if measured
                else "not measured"
            )


def predicted_gib(configuration: Configuration, device: torch.device) -> float:
    """Predict the peak memory of a training step on a device.

    Args:
        configuration: What is trained.
        device: Where.

    Returns:
        GiB.
    """
    return step_memory_gib(configuration, "cuda" if device.type == "cuda" else "cpu")


def _try(configuration: Configuration, device: torch.device, predicted: float) -> float | None:
    """Peak memory of a step in GiB; None if it does not fit."""
    if device.type == "cpu" and predicted > available_memory_gib():
        return None
    try:
        return measure_step_gib(configuration, device)
    except MemoryError:
        return None
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
