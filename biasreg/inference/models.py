"""Which trained model serves a prediction."""

from dataclasses import dataclass
from pathlib import Path

from biasreg.core.errors import DatasetError, ModelNotFoundError, PlansError
from biasreg.core.paths import find_dataset
from biasreg.core.serialization import from_json, read_json
from biasreg.network.checkpoint import BEST, LATEST
from biasreg.planning.plans import PLANS_SCHEMA_VERSION, Configuration, Plans

PLANS_FILE = "plans.json"


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
    candidates = [folder for folder in _model_folders(results, request.dataset) if _fits(folder, request)]
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


def _nothing_fits(results: Path, request: ModelRequest) -> ModelNotFoundError:
    trained = [_label(folder) for folder in _model_folders(results, None)]
    there = f"trained are: {', '.join(trained)}" if trained else "none is trained"
    return ModelNotFoundError(
        f"there is no trained model{_describe(request)} · {results} ({there}) · train one with "
        f"`biasreg_train {request.dataset or 'DATASET'} 0`"
    )


def _model_folders(results: Path, dataset: str | None) -> list[Path]:
    """Folders with plans and at least one checkpoint."""
    if not results.is_dir():
        return []
    datasets = sorted(path for path in results.iterdir() if path.is_dir())
    if dataset is not None:
        try:
            datasets = [find_dataset(dataset, results)]
        except DatasetError as error:
            raise ModelNotFoundError(
                f"{error} · trained models are looked for there; train one with `biasreg_train {dataset} 0`, or name "
                "another with -d"
            ) from None
    folders = [folder for path in datasets for folder in sorted(path.iterdir()) if (folder / PLANS_FILE).is_file()]
    return [folder for folder in folders if _trained_folds(folder)]


def _trained_folds(folder: Path) -> dict[str, Path]:
    """Checkpoint of each fold of a model: the best one, else the latest."""
    folds = {}
    for path in sorted(folder.glob("fold_*")):
        found = [path / name for name in (BEST, LATEST) if (path / name).is_file()]
        if found:
            folds[path.name.removeprefix("fold_")] = found[0]
    return folds


def _names(folder: Path) -> tuple[str, str]:
    """Name of the plans and of the configuration of a model's folder; only the plans' name may hold `__` itself."""
    plans_name, _, configuration_name = folder.name.rpartition("__")
    return plans_name, configuration_name


def _fits(folder: Path, request: ModelRequest) -> bool:
    plans_name, configuration_name = _names(folder)
    return request.plans_name in (None, plans_name) and request.configuration in (None, configuration_name)


def _read_configuration(path: Path, name: str) -> Configuration:
    data = read_json(path)
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != PLANS_SCHEMA_VERSION:
        raise PlansError(
            f"the model's plans have schema version {version}, this biasreg reads version {PLANS_SCHEMA_VERSION} · "
            f"{path} · predict with the version of biasreg that trained it, or plan and train again"
        )
    plans = from_json(Plans, data, where=str(path))
    if name not in plans.configurations:
        raise PlansError(
            f"the model's plans hold no configuration '{name}', only {', '.join(plans.configurations)} · {path} · "
            "was the folder renamed? Give it its name back"
        )
    return plans.configurations[name]


def _choose_folds(folder: Path, asked: tuple[str, ...] | None) -> tuple[Path, ...]:
    folds = _trained_folds(folder)
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
