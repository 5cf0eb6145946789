"""The training loop.

Every step is a pure function of the weights, the optimiser, torch's random state and the step's number, all of which a
checkpoint holds; so a run that was interrupted and resumed goes the same way as one that was not (bit by bit on a CPU).
"""

import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import nn
from tqdm import tqdm

from biasreg.core.errors import TrainingError
from biasreg.core.serialization import from_json, to_json, write_record
from biasreg.losses.objective import objective
from biasreg.network.checkpoint import (
    BEST,
    LATEST,
    Checkpoint,
    capture,
    load_network_state,
    restore_random_states,
    save_checkpoint,
)
from biasreg.network.device import autocast, is_out_of_memory
from biasreg.planning.pairing import Pair
from biasreg.training.augmentation import augment_pairs, pair_generator
from biasreg.training.averaging import WeightAverage
from biasreg.training.data import HostBatch, to_device
from biasreg.training.distributed import ALONE, Team
from biasreg.training.interruption import StopRequest, TrainingStoppedError, watch_signals
from biasreg.training.observers import Observer
from biasreg.training.optimization import (
    StepOutcome,
    check_skipped,
    set_learning_rate,
    take_step,
)
from biasreg.training.progress import Progress
from biasreg.training.recipe import Home, Recipe, TrainingData
from biasreg.training.validation import ValidationResult

logger = logging.getLogger(__name__)

VALIDATION_FILE = "validation.json"
AUGMENTATION_STREAM, OBJECTIVE_STREAM = 1, 2  # independent random streams of a step


class Trainer:
    """Trains a network to the end of its recipe, or until a signal stops it.

    Args:
        network: On the device that it trains on.
        optimizer: Holds its parameters.
        recipe: How to train.
        data: What to learn from.
        home: Where checkpoints go.
        observers: Told of every epoch, by the process that writes.
        team: The processes that train together; None when there is but this one.
        picture: Draws a validation pair, registered by the network, after the given epoch.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what a run is made of; nothing of it belongs together more than the rest
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        data: TrainingData,
        home: Home,
        observers: Sequence[Observer] = (),
        team: Team | None = None,
        picture: Callable[[nn.Module, int], None] | None = None,
    ) -> None:
        self.picture = picture
        self.network = network
        self.optimizer = optimizer
        self.recipe = recipe
        self.data = data
        self.home = home
        self.observers = observers
        self.progress = Progress()
        self.device = next(network.parameters()).device
        self.team = team or Team(ALONE, self.device)
        self.average = WeightAverage(network, recipe.averaging_decay) if recipe.averaging_decay > 0 else None
        self._replica = self.team.replicate(network)

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and that predicts: the averaged one, if there is one."""
        return self.network if self.average is None else self.average.network

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done."""
        return len(self.progress.history) >= self.recipe.epochs

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where a checkpoint was written."""
        if checkpoint.optimizer is None:
            raise TrainingError(f"a checkpoint without optimiser cannot be resumed · take {LATEST}, not {BEST}")
        load_network_state(self.network, checkpoint.network)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        if self.average is not None:
            if checkpoint.averaged is None:
                raise TrainingError("the checkpoint to resume holds no averaged weights · start anew with --overwrite")
            self.average.restore(checkpoint.averaged)
        self.progress = from_json(Progress, checkpoint.progress, where=f"{LATEST}: progress")
        restore_random_states(checkpoint)

    def run(self) -> None:
        """Train.

        Raises:
            TrainingStoppedError: After SIGINT or SIGTERM, once the state is saved.
            TrainingError: If the loss stays not finite, data cannot be read, or the device's memory is too small.
            CheckpointError: If a checkpoint cannot be written.
        """
        try:
            self._tell(lambda observer: observer.on_start(tuple(self.progress.history)))
            self.network.train()
            with watch_signals() as stop, self.data.open_batches(self.progress.iteration) as batches:
                while not self.is_finished:
                    if not self._run_steps(batches, stop) or not self._end_epoch(stop):
                        self._leave(stop)
        finally:
            self._tell(lambda observer: observer.on_end())
        self.write_validation()  # once more, should a write have failed

    def _run_steps(self, batches: Iterator[HostBatch], stop: StopRequest) -> bool:
        """Do the steps that the running epoch still lacks; tell whether all of them were done."""
        length, progress = self.recipe.iterations_per_epoch, self.progress
        epoch = len(progress.history)
        done = progress.iteration - epoch * length
        title = f"epoch {epoch + 1}/{self.recipe.epochs}"
        silent = None if self.team.writes else True
        with tqdm(total=length, initial=done, desc=title, unit="step", leave=False, disable=silent) as bar:
            while progress.iteration < (epoch + 1) * length:
                if self.team.any(bool(stop)):
                    return False
                started = time.perf_counter()
                batch = next(batches)
                progress.waiting += time.perf_counter() - started
                outcome = self._step(batch)
                progress.count(outcome, time.perf_counter() - started)
                bar.update()
                bar.set_postfix_str(f"loss {outcome.loss:.4f}", refresh=False)
                if not outcome.taken:
                    where = f"iteration {progress.iteration}, {self._suspects(batch, outcome)}"
                    counts = progress.skipped_in_a_row, (progress.skipped, progress.taken)
                    self.team.by_first(partial(check_skipped, outcome, *counts, where))
        return True

    def _suspects(self, batch: HostBatch, outcome: StepOutcome) -> str:
        """Name the pairs of all processes that kept a step from being taken; all of them where that cannot be told."""
        named = [batch.pairs[place] for place in outcome.suspects]
        shares = self.team.collect([(named, list(batch.pairs))])
        suspects = [pair for found, _ in shares for pair in found]
        return _names(suspects or [pair for _, every in shares for pair in every])

    def _step(self, batch: HostBatch) -> StepOutcome:
        """Do the step that comes after `progress.iteration` steps."""
        recipe, index = self.recipe, self.progress.iteration
        set_learning_rate(self.optimizer, recipe.learning_rate_at(index))
        try:
            pairs = augment_pairs(
                to_device(batch, self.device),
                recipe.augmentation,
                recipe.objective.spacing,
                [pair_generator(recipe.seed, number, AUGMENTATION_STREAM) for number in batch.numbers],
            )
            with autocast(self.device):
                terms = objective(
                    self._replica,
                    pairs,
                    recipe.objective,
                    consistency_scale=recipe.consistency_scale_at(index),
                    generators=[pair_generator(recipe.seed, number, OBJECTIVE_STREAM) for number in batch.numbers],
                )
            outcome = take_step(terms, self.optimizer, recipe.gradient_clip, self.team.mean)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"the memory of {self.device} does not hold a training step ({error}) · {_names(batch.pairs)}, shape "
                f"{tuple(batch.moving.shape)} · free the device, or plan for less memory"
            ) from error
        if outcome.taken and self.average is not None:
            self.average.update(self.network, index)
        return outcome

    def _end_epoch(self, stop: StopRequest) -> bool:
        """Validate, save, and tell the observers; False, and nothing, when a stop is asked for during validation."""
        progress, number = self.progress, len(self.progress.history) + 1
        started = time.perf_counter()
        result = None
        if number % self.recipe.validate_every == 0 or number == self.recipe.epochs:
            result = self._validate(number, stop)
            if result is None:
                return False
        progress.seconds += time.perf_counter() - started
        is_best = progress.close_epoch(self.recipe.learning_rate_at(progress.iteration - 1), result)
        # The best goes first: killed between the two, a resumed run repeats this epoch and writes both again.
        # Until an epoch has a usable score, the latest weights are as good as any.
        if is_best or progress.best is None:
            self._save_best()
        self._save()
        if is_best:
            self.write_validation()
        self._tell(lambda observer: observer.on_epoch_end(tuple(progress.history)))
        every = self.recipe.picture_every
        if self.picture is not None and every and number % every == 0 and self.team.writes:
            self.picture(self.evaluated, number)
        return True

    def _validate(self, epoch: int, stop: StopRequest) -> ValidationResult | None:
        validation = self.data.validation
        scores = []
        for score in validation.scores(self.evaluated, self.team.share(validation.pairs)):
            scores.append(score)
            if stop and self.team.is_alone:
                return None
        scores_of_all = self.team.collect(scores)
        return None if self.team.any(bool(stop)) else ValidationResult(epoch, validation.held_out, scores_of_all)

    def _leave(self, stop: StopRequest) -> None:
        """Save the state in the middle of an epoch and end the run."""
        self._save()
        by = stop.signal_name if stop else "a signal to another process"
        stopped = TrainingStoppedError(
            stop.signal_number or signal.SIGTERM,
            f"stopped by {by} after {self.progress.iteration} of {self.recipe.iterations} iterations · "
            f"the state is saved in {self.home.folder / LATEST} · resume with the same command and --c",
        )

        def leave() -> None:
            raise stopped

        self.team.by_first(leave)  # nobody leaves, and so ends the others, before it is written; one says why

    def _save(self) -> None:
        if not self.team.writes:
            return
        averaged = None if self.average is None else self.average.state()
        checkpoint = capture(self.home.identity, to_json(self.progress), self.network, self.optimizer, averaged)
        save_checkpoint(self.home.folder / LATEST, checkpoint)

    def _save_best(self) -> None:
        if not self.team.writes:
            return
        checkpoint = capture(self.home.identity, to_json(self.progress), self.evaluated, None)
        save_checkpoint(self.home.folder / BEST, checkpoint)

    def write_validation(self) -> None:
        """Write the scores of the best epoch; a failure is a warning, since the checkpoints hold them too."""
        if self.progress.best is None or not self.team.writes:
            return
        try:
            write_record(self.home.folder / VALIDATION_FILE, self.progress.best)
        except OSError as error:
            logger.warning("the scores of the best epoch could not be written: %s", error)

    def _tell(self, call: Callable[[Observer], None]) -> None:
        """Call the observers, if this process writes; a record that cannot be written is no reason to lose a run."""
        for observer in self.observers if self.team.writes else ():
            try:
                call(observer)
            except OSError as error:
                logger.warning("%s could not write its record: %s", type(observer).__name__, error)


def _names(pairs: Sequence[Pair]) -> str:
    return "pair " + ", ".join(f"{moving} -> {fixed}" for moving, fixed in pairs)
