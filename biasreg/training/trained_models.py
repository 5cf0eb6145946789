"""The trained models of a dataset, with the validation scores of their folds."""

from dataclasses import dataclass
from pathlib import Path

from biasreg.core.errors import BiasregError
from biasreg.core.serialization import read_record
from biasreg.inference.models import trained_folds
from biasreg.network.checkpoint import LATEST, load_checkpoint
from biasreg.planning.ablations import whole_name
from biasreg.planning.files import PLANS_FILE
from biasreg.planning.plans import Configuration
from biasreg.training.trainer import VALIDATION_FILE
from biasreg.training.validation import PairScore, ValidationResult

PairKey = tuple[str, str, str]  # fold, moving case, fixed case


@dataclass(frozen=True)
class TrainedFold:
    """One fold of a model.

    Attributes:
        name: Its number, or `all`.
        epochs_done: Finished epochs.
        epochs: Epochs that the run was started with.
        result: Scores of its validation pairs at the best epoch; None if it was never validated.
    """

    name: str
    epochs_done: int
    epochs: int
    result: ValidationResult | None

    @property
    def counts(self) -> bool:
        """Whether it is finished, validated, and held cases back."""
        return self.name != "all" and self.epochs_done >= self.epochs and self.result is not None


@dataclass(frozen=True)
class Model:
    """A trained model.

    Attributes:
        plans_name: Name of its plans.
        configuration_name: Name of its configuration.
        configuration: What was trained.
        folds: Its folds, in order.
    """

    plans_name: str
    configuration_name: str
    configuration: Configuration
    folds: tuple[TrainedFold, ...]

    @property
    def name(self) -> str:
        """Plans and configuration, as its folder is called."""
        return f"{self.plans_name}__{self.configuration_name}"

    @property
    def is_ablation(self) -> bool:
        """Whether it goes without a part of the method."""
        return whole_name(self.configuration_name) != self.configuration_name

    @property
    def pairs(self) -> dict[PairKey, PairScore]:
        """Scores of the validation pairs of the folds that count."""
        counting = ((fold.name, fold.result) for fold in self.folds if fold.counts)
        return {(name, pair.moving, pair.fixed): pair for name, result in counting if result for pair in result.pairs}


def read_models(folder: Path, unreadable: list[str]) -> tuple[Model, ...]:
    """Read the folds of all trained models of a dataset.

    Args:
        folder: Results of the dataset.
        unreadable: A sentence on each checkpoint that this version cannot read is added here.

    Returns:
        The models, by their names.
    """
    models = []
    for path in sorted(found for found in folder.iterdir() if (found / PLANS_FILE).is_file()):
        plans_name, _, configuration_name = path.name.rpartition("__")
        folds, configuration = [], None
        for name, checkpoint in trained_folds(path).items():
            try:
                fold, configuration = _read_fold(name, checkpoint)
            except BiasregError as error:
                unreadable.append(f"not compared: {error}")
                continue
            folds.append(fold)
        if configuration is not None:
            models.append(Model(plans_name, configuration_name, configuration, tuple(folds)))
    return tuple(models)


def _read_fold(name: str, path: Path) -> tuple[TrainedFold, Configuration]:
    """Read how far a fold was trained, how it was validated, and what was trained."""
    latest = path.with_name(LATEST)
    checkpoint = load_checkpoint(latest if latest.is_file() else path, lazy=True)
    scores = path.with_name(VALIDATION_FILE)
    result = read_record(scores, ValidationResult) if scores.is_file() else None
    fold = TrainedFold(name, checkpoint.epochs_done, checkpoint.identity.run.epochs, result)
    return fold, checkpoint.identity.configuration
