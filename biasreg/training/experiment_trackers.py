"""Programs that keep the course of many runs side by side: optional observers, imported when asked for."""

import importlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from biasreg.core.errors import InputError
from biasreg.core.serialization import read_json, write_json
from biasreg.training.observers import EpochRecord, Observer

logger = logging.getLogger(__name__)

TENSORBOARD_FOLDER = "tensorboard"
RUNS_FILE = "tracked_runs.json"
PROJECT = "biasreg"  # where Weights & Biases lists the runs, unless WANDB_PROJECT names another one
MLFLOW_PARAMETERS = 100  # that MLflow's server takes in one call
MLFLOW_CHARACTERS = 500  # of a parameter's value that every version of MLflow keeps


class TrackedRun(NamedTuple):
    """The run that is followed.

    Attributes:
        folder: Folder of the fold; keeps the identifiers that the programs give the run.
        name: What the programs call the run.
        settings: What the run was started with, as plain JSON data.
        is_resumed: Whether it goes on from a checkpoint; the programs then go on under the same identifier.
    """

    folder: Path
    name: str
    settings: Mapping[str, Any]
    is_resumed: bool


def trackers(names: Sequence[str], run: TrackedRun) -> tuple[Observer, ...]:
    """Make the observers that a user asked for; what refuses to begin a run does so here, before anything is trained.

    Args:
        names: Any of `tensorboard`, `wandb` and `mlflow`.
        run: The run.

    Returns:
        One observer for each name, in their order.

    Raises:
        InputError: If a program is unknown, not installed, or does not let a run begin.
    """
    unknown = [name for name in names if name not in TRACKERS]
    if unknown:
        raise InputError(f"no tracker is called {', '.join(unknown)} · there are: {', '.join(TRACKERS)}")
    return tuple(TRACKERS[name](run) for name in dict.fromkeys(names))


class TensorBoardObserver:
    """Writes the numbers of each epoch for TensorBoard, into the folder of the fold.

    Args:
        run: The run; TensorBoard calls it by its folder, and shows its settings as text.

    Raises:
        InputError: If TensorBoard is not installed.
    """

    def __init__(self, run: TrackedRun) -> None:
        self._module = _import(
            "torch.utils.tensorboard", "TensorBoard", 'pip install -c constraints.txt -e ".[tensorboard]"'
        )
        self._folder = run.folder / TENSORBOARD_FOLDER
        self._settings = run.settings
        self._writer: Any = None

    def on_start(self, history: Sequence[EpochRecord]) -> None:
        """Write the events anew, so that they hold what the checkpoint knows and nothing else."""
        for path in self._folder.glob("events.out.tfevents.*"):
            path.unlink()
        self._writer = self._module.SummaryWriter(str(self._folder))
        self._writer.add_text("settings", f"```json\n{json.dumps(self._settings, indent=2)}\n```")
        for record in history:
            self._write(record)
        self._writer.flush()

    def on_epoch_end(self, history: Sequence[EpochRecord]) -> None:
        """Write the last epoch."""
        with _never_fatal("TensorBoard"):
            self._write(history[-1])
            self._writer.flush()

    def on_end(self) -> None:
        """Close the file of events."""
        if self._writer is not None:
            with _never_fatal("TensorBoard"):
                self._writer.close()

    def _write(self, record: EpochRecord) -> None:
        for name, value in metrics_of(record).items():
            self._writer.add_scalar(name, value, record.epoch)


class WandbObserver:
    """Sends the numbers of each epoch to Weights & Biases.

    Where to, and under which account, says that program's own environment (`WANDB_PROJECT`, `WANDB_MODE=offline`, …).

    Args:
        run: The run.

    Raises:
        InputError: If wandb is not installed, or does not let a run begin, for example without a login.
    """

    def __init__(self, run: TrackedRun) -> None:
        module = _import("wandb", "Weights & Biases", "pip install wandb")
        known = _known_run(run, "wandb")
        chosen: dict[str, Any] = {"id": known, "resume": "allow"} if known else {}
        with _refused("Weights & Biases", "log in by `wandb login`, or set WANDB_MODE=offline", module.Error):
            self._run: Any = module.init(
                project=module.setup().settings.project or PROJECT,
                name=run.name,
                dir=str(run.folder),
                config=dict(run.settings),
                **chosen,
            )
        _remember_run(run.folder, "wandb", self._run.id)

    def on_start(self, history: Sequence[EpochRecord]) -> None:
        """Do nothing: what was sent before is still there."""

    def on_epoch_end(self, history: Sequence[EpochRecord]) -> None:
        """Send the last epoch."""
        with _never_fatal("Weights & Biases"):
            self._run.log(metrics_of(history[-1]), step=history[-1].epoch)

    def on_end(self) -> None:
        """Send what is left, and close the run."""
        with _never_fatal("Weights & Biases"):
            self._run.finish()


class MlflowObserver:
    """Sends the numbers of each epoch to MLflow.

    Where to says that program's own environment (`MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`, …).

    Args:
        run: The run.

    Raises:
        InputError: If mlflow is not installed, or does not let a run begin, for example because its server does not
            answer.
    """

    def __init__(self, run: TrackedRun) -> None:
        self._module = _import("mlflow", "MLflow", "pip install mlflow")
        known = _known_run(run, "mlflow")
        with _refused("MLflow", "see that the server of MLFLOW_TRACKING_URI answers", Exception):
            begun = self._module.start_run(run_id=known, run_name=None if known else run.name)
            if known is None:
                self._send(run.settings)
        _remember_run(run.folder, "mlflow", begun.info.run_id)

    def on_start(self, history: Sequence[EpochRecord]) -> None:
        """Do nothing: what was sent before is still there."""

    def on_epoch_end(self, history: Sequence[EpochRecord]) -> None:
        """Send the last epoch."""
        with _never_fatal("MLflow"):
            self._module.log_metrics(metrics_of(history[-1]), step=history[-1].epoch)

    def on_end(self) -> None:
        """Close the run."""
        with _never_fatal("MLflow"):
            self._module.end_run()

    def _send(self, settings: Mapping[str, Any]) -> None:
        flat = list(_flatten(settings))
        for start in range(0, len(flat), MLFLOW_PARAMETERS):
            self._module.log_params(dict(flat[start : start + MLFLOW_PARAMETERS]))


def metrics_of(record: EpochRecord) -> dict[str, float]:
    """Name the numbers of an epoch, grouped by a slash; those that are not known are left out.

    Args:
        record: The epoch.

    Returns:
        Value by name.
    """
    numbers = {
        **{f"loss/{name}": value for name, value in record.losses.items()},
        "validation/dice_before": record.dice_before,
        "validation/dice_after": record.dice_after,
        "validation/folding_percent": record.folding_percent,
        "validation/similarity_loss": record.similarity_loss,
        "optimisation/learning_rate": record.learning_rate,
        "optimisation/skipped_steps": float(record.skipped_steps),
        "time/epoch_seconds": record.seconds,
        "time/step_seconds": record.step_seconds,
        "time/data_wait_fraction": record.data_wait_fraction,
    }
    return {name: value for name, value in numbers.items() if value is not None}


def _import(module: str, program: str, remedy: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{program} is not installed ({error}) · {remedy} · or leave it out of --track") from error


@contextmanager
def _refused(program: str, remedy: str, kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kind as error:
        raise InputError(f"{program} does not begin a run: {error} · {remedy}, or leave it out of --track") from error


@contextmanager
def _never_fatal(program: str) -> Iterator[None]:
    """Turn whatever a tracker raises into a warning: a record is no reason to lose a training run."""
    try:
        yield
    except Exception as error:  # these programs raise errors of their own, of the network and of the file system
        logger.warning("%s did not take note of the run: %s: %s", program, type(error).__name__, error)


def _known_run(run: TrackedRun, program: str) -> str | None:
    path = run.folder / RUNS_FILE
    known: dict[str, str] = read_json(path) if run.is_resumed and path.is_file() else {}
    return known.get(program)


def _remember_run(folder: Path, program: str, identifier: str) -> None:
    path = folder / RUNS_FILE
    known = read_json(path) if path.is_file() else {}
    write_json(path, {**known, program: identifier})


def _flatten(settings: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested settings, as `training.epochs`; lists stay whole."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)[:MLFLOW_CHARACTERS]


TRACKERS: dict[str, Callable[[TrackedRun], Observer]] = {
    "tensorboard": TensorBoardObserver,
    "wandb": WandbObserver,
    "mlflow": MlflowObserver,
}
