"""How the loop trains, what on, and where its results go."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from biasreg.losses.objective import ObjectiveSettings
from biasreg.network.checkpoint import Identity
from biasreg.planning.plans import AugmentationPlans
from biasreg.training.data import HostBatch
from biasreg.training.optimization import polynomial_rate, warmup_scale
from biasreg.training.validation import Validation


@dataclass(frozen=True)
class Recipe:
    """How the loop trains.

    Attributes:
        epochs: Number of epochs.
        iterations_per_epoch: Steps per epoch.
        seed: Seed of the augmentation and of what the objective samples.
        learning_rate: Start of the polynomial decay.
        learning_rate_power: Exponent of the polynomial decay.
        learning_rate_warmup: Fraction of training over which the learning rate rises from 0.
        gradient_clip: Largest norm of the gradient.
        averaging_decay: Decay of the moving average of the weights; 0 for none.
        consistency_warmup: Fraction of training over which the consistency weight rises from 0.
        consistency_interval: Consistency is computed in every so many steps.
        validate_every: Validate after every so many epochs, and after the last.
        picture_every: Draw a validation pair after every so many epochs; 0 for never.
        augmentation: Strength of the spatial augmentation.
        objective: Settings of the loss.
    """

    epochs: int
    iterations_per_epoch: int
    seed: int
    learning_rate: float
    learning_rate_power: float
    learning_rate_warmup: float
    gradient_clip: float
    averaging_decay: float
    consistency_warmup: float
    consistency_interval: int
    validate_every: int
    picture_every: int
    augmentation: AugmentationPlans
    objective: ObjectiveSettings

    @property
    def iterations(self) -> int:
        """Number of steps of the whole run."""
        return self.epochs * self.iterations_per_epoch

    def learning_rate_at(self, index: int) -> float:
        """Learning rate of the step that comes after `index` steps."""
        decayed = polynomial_rate(index, self.iterations, self.learning_rate, self.learning_rate_power)
        return decayed * warmup_scale(index + 1, self.iterations, self.learning_rate_warmup)

    def consistency_scale_at(self, index: int) -> float:
        """Factor of the consistency weight in that step; 0 where it is left out."""
        if index % self.consistency_interval:
            return 0.0
        return warmup_scale(index, self.iterations, self.consistency_warmup)


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
