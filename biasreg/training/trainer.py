"""The training loop.

Every step is a pure function of the weights, the optimiser, torch's random state and the step's number, all of which a
checkpoint holds; so a run that was interrupted and resumed goes the same way as one that was not (bit by bit on a CPU).
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from biasreg.core.errors import TrainingError
from biasreg.core.serialization import from_json, to_json, write_record
from biasreg.losses.objective import ObjectiveSettings, objective
from biasreg.network.checkpoint import (
    BEST,
    LATEST,
    Checkpoint,
    Identity,
    capture,
    restore_random_states,
    save_checkpoint,
)
from biasreg.network.device import autocast
from biasreg.planning.plans import AugmentationPlans
from biasreg.training.augmentation import augment_pairs, step_generator
from biasreg.training.data import HostBatch, to_device
from biasreg.training.interruption import StopRequest, TrainingStoppedError, watch_signals
from biasreg.training.observers import Observer
from biasreg.training.optimization import (
    StepOutcome,
    check_skipped,
    polynomial_rate,
    set_learning_rate,
    take_step,
    warmup_scale,
)
from biasreg.training.progress import Progress
from biasreg.training.validation import Validation, ValidationResult

logger = logging.getLogger(__name__)

VALIDATION_FILE = "validation.json"
AUGMENTATION_STREAM, OBJECTIVE_STREAM = 1, 2  # independent random streams of a step


@dataclass(frozen=True)
class Recipe:
    """How the loop trains.

    Attributes:
        epochs: Number of epochs.
        iterations_per_epoch: Steps per epoch.
        seed: Seed of the augmentation and of what the objective samples.
        learning_rate: Start of the polynomial decay.
        learning_rate_power: Exponent of the polynomial decay.
        gradient_clip: Largest norm of the gradient.
        consistency_warmup: Fraction of training over which the consistency weight rises from 0.
        validate_every: Validate after every so many epochs, and after the last.
        augmentation: Strength of the spatial augmentation.
        objective: Settings of the loss.
    """

    epochs: int
    iterations_per_epoch: int
    seed: int
    learning_rate: float
    learning_rate_power: float
    gradient_clip: float
    consistency_warmup: float
    validate_every: int
    augmentation: AugmentationPlans
    objective: ObjectiveSettings

    @property
    def iterations(self) -> int:
        """Number of steps of the whole run."""
        return self.epochs * self.iterations_per_epoch


class TrainingData(NamedTuple):
    """What a run learns from and is measured on.

    Attributes:
        open_batches: Opens the stream of batches from a given number on.
        validation: The pairs to score after an epoch.
    """

    open_batches: Callable[[int], AbstractContextManager[Iterator[HostBatch]]]
    validation: Validation


class Home(NamedTuple):
    """Where a run lives.

    Attributes:
        folder: Folder of the fold.
        identity: Written into every checkpoint.
    """

    folder: Path
    identity: Identity


class Trainer:
    """Trains a network to the end of its recipe, or until a signal stops it.

    Args:
        network: On the device that it trains on.
        optimizer: Holds its parameters.
        recipe: How to train.
        data: What to learn from.
        home: Where checkpoints go.
        observers: Told of every epoch.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        data: TrainingData,
        home: Home,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.recipe = recipe
        self.data = data
        self.home = home
        self.observers = observers
        self.progress = Progress()
        self.device = next(network.parameters()).device

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done."""
        return len(self.progress.history) >= self.recipe.epochs

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where a checkpoint was written."""
        if checkpoint.optimizer is None:
            raise TrainingError(f"a checkpoint without optimiser cannot be resumed · take {LATEST}, not {BEST}")
        self.network.load_state_dict(checkpoint.network)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.progress = from_json(Progress, checkpoint.progress, where=f"{LATEST}: progress")
        restore_random_states(checkpoint)

    def run(self) -> None:
        """Train.

        Raises:
            TrainingStoppedError: After SIGINT or SIGTERM, once the state is saved.
            TrainingError: If the loss stays not finite, data cannot be read, or the device's memory is too small.
            CheckpointError: If a checkpoint cannot be written.
        """
        self._tell(lambda observer: observer.on_start(tuple(self.progress.history)))
        self.network.train()
        with watch_signals() as stop, self.data.open_batches(self.progress.iteration) as batches:
            while not self.is_finished:
                self._run_steps(batches, stop)
                if not stop:
                    self._end_epoch(stop)
                if stop and not self.is_finished:
                    self._leave(stop)
        if self.progress.best is not None:
            write_record(self.home.folder / VALIDATION_FILE, self.progress.best)

    def _run_steps(self, batches: Iterator[HostBatch], stop: StopRequest) -> None:
        """Do the steps that the running epoch still lacks."""
        length, progress = self.recipe.iterations_per_epoch, self.progress
        epoch = len(progress.history)
        done = progress.iteration - epoch * length
        title = f"epoch {epoch + 1}/{self.recipe.epochs}"
        with tqdm(total=length, initial=done, desc=title, unit="step", leave=False, disable=None) as bar:
            while progress.iteration < (epoch + 1) * length and not stop:
                started = time.perf_counter()
                batch = next(batches)
                progress.waiting += time.perf_counter() - started
                outcome = self._step(batch)
                progress.count(outcome)
                progress.seconds += time.perf_counter() - started
                bar.update()
                bar.set_postfix_str(f"loss {outcome.loss:.4f}", refresh=False)
                if not outcome.taken:
                    where = f"iteration {progress.iteration}, {_names(batch)}"
                    check_skipped(outcome, progress.skipped_in_a_row, where)

    def _step(self, batch: HostBatch) -> StepOutcome:
        """Do the step that comes after `progress.iteration` steps."""
        recipe, index = self.recipe, self.progress.iteration
        set_learning_rate(self.optimizer, self._learning_rate(index))
        try:
            pairs = augment_pairs(
                to_device(batch, self.device),
                recipe.augmentation,
                recipe.objective.spacing,
                step_generator(recipe.seed, index, AUGMENTATION_STREAM),
            )
            with autocast(self.device):
                terms = objective(
                    self.network,
                    pairs,
                    recipe.objective,
                    consistency_scale=warmup_scale(index, recipe.iterations, recipe.consistency_warmup),
                    generator=step_generator(recipe.seed, index, OBJECTIVE_STREAM),
                )
            return take_step(terms, list(self.network.parameters()), self.optimizer, recipe.gradient_clip)
        except torch.cuda.OutOfMemoryError as error:
            raise TrainingError(
                f"the memory of {self.device} does not hold a training step ({error}) · {_names(batch)}, shape "
                f"{tuple(batch.moving.shape)} · free the device, or plan for less memory"
            ) from error

    def _end_epoch(self, stop: StopRequest) -> None:
        """Validate, save, and tell the observers; does nothing when a stop is asked for during validation."""
        progress, number = self.progress, len(self.progress.history) + 1
        started = time.perf_counter()
        result = None
        if number % self.recipe.validate_every == 0 or number == self.recipe.epochs:
            result = self._validate(number, stop)
        if stop:
            return
        progress.seconds += time.perf_counter() - started
        progress.close_epoch(self._learning_rate(progress.iteration - 1), result)
        is_best = result is not None and result.score > (progress.best.score if progress.best else -math.inf)
        if is_best:
            progress.best = result
        # The best goes first: killed between the two, a resumed run repeats this epoch and writes both again.
        # Until an epoch has a usable score, the latest weights are as good as any.
        if is_best or progress.best is None:
            self._save_best()
        self._save()
        self._tell(lambda observer: observer.on_epoch_end(tuple(progress.history)))

    def _validate(self, epoch: int, stop: StopRequest) -> ValidationResult | None:
        validation = self.data.validation
        scores = []
        for score in validation.scores(self.network):
            scores.append(score)
            if stop:
                return None
        return ValidationResult(epoch, validation.held_out, tuple(scores))

    def _leave(self, stop: StopRequest) -> None:
        """Save the state in the middle of an epoch and end the run."""
        self._save()
        raise TrainingStoppedError(
            stop.signal_number or 0,
            f"stopped by {stop.signal_name} after {self.progress.iteration} of {self.recipe.iterations} iterations · "
            f"the state is saved in {self.home.folder / LATEST} · resume with the same command and --c",
        )

    def _save(self) -> None:
        checkpoint = capture(self.home.identity, to_json(self.progress), self.network, self.optimizer)
        save_checkpoint(self.home.folder / LATEST, checkpoint)

    def _save_best(self) -> None:
        checkpoint = capture(self.home.identity, to_json(self.progress), self.network, None)
        save_checkpoint(self.home.folder / BEST, checkpoint)
        if self.progress.best is not None:
            write_record(self.home.folder / VALIDATION_FILE, self.progress.best)

    def _learning_rate(self, index: int) -> float:
        recipe = self.recipe
        return polynomial_rate(index, recipe.iterations, recipe.learning_rate, recipe.learning_rate_power)

    def _tell(self, call: Callable[[Observer], None]) -> None:
        """Call the observers; a record that cannot be written is no reason to lose a training run."""
        for observer in self.observers:
            try:
                call(observer)
            except OSError as error:
                logger.warning("%s could not write its record: %s", type(observer).__name__, error)


def _names(batch: HostBatch) -> str:
    return "pair " + ", ".join(f"{moving} -> {fixed}" for moving, fixed in batch.pairs)
