"""Which trained model serves a prediction."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from biasreg.core.errors import DatasetError, ModelNotFoundError, PlansError
from biasreg.core.paths import find_dataset
from biasreg.network.checkpoint import BEST, LATEST, load_checkpoint
from biasreg.planning.files import PLANS_FILE, read_plans
from biasreg.planning.plans import Configuration

_FOLD_FOLDER = re.compile(r"fold_(\d+|all)", re.ASCII)


@dataclass(frozen=True)
class ModelRequest:
    """What the user asked for; None leaves the choice to what is there.

    Attributes:
        dataset: Dataset id or name.
        plans_name: Name of the plans.
        configuration: Name of the configuration.
        folds: Folds to use (`0`, `1`, ..., or `all`).
    """

    dataset: str | None = None
    plans_name: str | None = None
    configuration: str | None = None
    folds: tuple[str, ...] | None = None


ONLY_MODEL = ModelRequest()


@dataclass(frozen=True)
class TrainedModel:
    """A trained model on disk.

    Attributes:
        folder: Results folder of the dataset, plans and configuration.
        configuration_name: Name of the configuration.
        configuration: The configuration.
        checkpoints: Checkpoint file of each fold that is used.
    """

    folder: Path
    configuration_name: str
    configuration: Configuration
    checkpoints: tuple[Path, ...]

    @property
    def results(self) -> Path:
        """Root of the results, where pretrained weights are too."""
        return self.folder.parents[1]

    @property
    def name(self) -> str:
        """Dataset, plans, configuration and folds in one line."""
        folds = ", ".join(path.parent.name for path in self.checkpoints)
        return f"{self.folder.parent.name}/{self.folder.name} ({folds})"


def find_model(results: Path, request: ModelRequest) -> TrainedModel:
    """Find the one trained model that fits a request.

    Args:
        results: Root of the results.
        request: What the user asked for.

    Returns:
        The model; of its folds those asked for, else all numbered ones, else `all`.

    Raises:
        ModelNotFoundError: If no model fits, or more than one does; the message lists them.
        PlansError: If the model's plans are of another version or lack its configuration.
    """
    candidates = [folder for folder in _model_folders(results, request) if _fits(folder, request)]
    if not candidates:
        raise _nothing_fits(results, request)
    if len(candidates) > 1:
        listed = "".join(f"\n  {_label(folder)}" for folder in candidates)
        raise ModelNotFoundError(
            f"there are {len(candidates)} trained models{_describe(request)} · {results} · choose one with -d, -p and "
            f"--configuration:{listed}"
        )
    folder = candidates[0]
    _, configuration_name = _names(folder)
    return TrainedModel(
        folder=folder,
        configuration_name=configuration_name,
        configuration=_read_configuration(folder / PLANS_FILE, configuration_name),
        checkpoints=_choose_folds(folder, request.folds),
    )


def trained_folds(folder: Path) -> dict[str, Path]:
    """Find the trained folds of a model.

    Args:
        folder: Folder of the model.

    Returns:
        The best checkpoint, else the latest, by the name of the fold: its number, or `all`. Other folders, such as a
        copy `fold_0_backup`, are no folds.
    """
    folds = {}
    for path in sorted(folder.glob("fold_*")):
        match = _FOLD_FOLDER.fullmatch(path.name)
        found = [path / name for name in (BEST, LATEST) if (path / name).is_file()]
        if match and found:
            folds[match[1]] = found[0]
    return folds


def training_notices(model: TrainedModel) -> tuple[str, ...]:
    """Say which folds of a model were not trained to their end, or never validated.

    Args:
        model: The model.

    Returns:
        One sentence per such fold.

    Raises:
        CheckpointError: If a checkpoint cannot be read.
    """
    notices = (_training_notice(path) for path in model.checkpoints)
    return tuple(notice for notice in notices if notice is not None)


def _training_notice(path: Path) -> str | None:
    used = load_checkpoint(path, lazy=True)
    latest = path.with_name(LATEST)
    # The best checkpoint, if it came alone, does not know how far the training went on after it.
    done = load_checkpoint(latest, lazy=True).epochs_done if latest.is_file() else None
    planned = used.identity.run.epochs
    faults = [] if done is None or done >= planned else [f"its training has come to {done} of {planned} epochs only"]
    faults += [] if used.is_validated else [f"its weights, after {used.epochs_done} epoch(s), were never validated"]
    if not faults:
        return None
    return f"{path.parent.name}: {', and '.join(faults)} · train it to its end, or choose other folds with -f"


def _nothing_fits(results: Path, request: ModelRequest) -> ModelNotFoundError:
    command = _train_command(request)
    if not results.is_dir():
        return ModelNotFoundError(
            f"there is no trained model{_describe(request)}: there is no folder {results} · train one first with "
            f"{command}, or give the folder of the results with --results"
        )
    trained = [_label(folder) for folder in _model_folders(results, ModelRequest())]
    there = f"trained are: {', '.join(trained)}" if trained else "none is trained"
    return ModelNotFoundError(
        f"there is no trained model{_describe(request)} · {results} ({there}) · train one with {command}"
    )


def _train_command(request: ModelRequest) -> str:
    """Write the command that trains what was asked for, as a user has to type it."""
    given = {"-p": request.plans_name, "-cfg": request.configuration}
    options = [word for name, value in given.items() if value is not None for word in (name, value)]
    return f"`{shlex.join(['biasreg_train', request.dataset or 'DATASET', '0', *options])}`"


def _model_folders(results: Path, request: ModelRequest) -> list[Path]:
    """Folders with plans and at least one checkpoint."""
    if not results.is_dir():
        return []
    datasets = sorted(path for path in results.iterdir() if path.is_dir())
    if request.dataset is not None:
        try:
            datasets = [find_dataset(request.dataset, results)]
        except DatasetError as error:
            raise ModelNotFoundError(
                f"{error} · trained models are looked for there; train one with {_train_command(request)}, or "
                "name another with -d"
            ) from None
    folders = [folder for path in datasets for folder in sorted(path.iterdir()) if (folder / PLANS_FILE).is_file()]
    return [folder for folder in folders if trained_folds(folder)]


def _names(folder: Path) -> tuple[str, str]:
    """Name of the plans and of the configuration of a model's folder; only the plans' name may hold `__` itself."""
    plans_name, _, configuration_name = folder.name.rpartition("__")
    return plans_name, configuration_name


def _fits(folder: Path, request: ModelRequest) -> bool:
    plans_name, configuration_name = _names(folder)
    return request.plans_name in (None, plans_name) and request.configuration in (None, configuration_name)


def _read_configuration(path: Path, name: str) -> Configuration:
    plans = read_plans(path, "predict with the version of biasreg that trained the model, or plan and train again")
    if name not in plans.configurations:
        raise PlansError(
            f"the model's plans hold no configuration '{name}', only {', '.join(plans.configurations)} · {path} · "
            "was the folder renamed? Give it its name back"
        )
    return plans.configurations[name]


def _choose_folds(folder: Path, asked: tuple[str, ...] | None) -> tuple[Path, ...]:
    folds = trained_folds(folder)
    if asked is None:
        numbered = [path for name, path in folds.items() if name != "all"]
        return tuple(numbered or folds.values())
    missing = [fold for fold in asked if fold not in folds]
    if missing:
        raise ModelNotFoundError(
            f"fold {', '.join(missing)} is not trained · {folder} (trained: {', '.join(folds)}) · train it, or omit -f"
        )
    return tuple(folds[fold] for fold in dict.fromkeys(asked))


def _label(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _describe(request: ModelRequest) -> str:
    asked = {"dataset": request.dataset, "plans": request.plans_name, "configuration": request.configuration}
    given = ", ".join(f"{key} {value}" for key, value in asked.items() if value is not None)
    return f" of {given}" if given else ""
