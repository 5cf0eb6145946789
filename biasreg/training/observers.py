"""What a run leaves beside its weights: a log, one line of numbers per epoch, and what pictures are called."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Protocol

from biasreg.core.serialization import atomic_write, to_json

logger = logging.getLogger(__name__)

LOG_FILE = "training_log.txt"
METRICS_FILE = "metrics.jsonl"
PROGRESS_FILE = "progress.png"
PICTURES_FOLDER = "pictures"
RECENT_EPOCHS = 5  # what the remaining time is told from: enough that one slow epoch does not count


@dataclass(frozen=True)
class EpochRecord:
    """What happened in one epoch.

    Attributes:
        epoch: Number of the epoch, from 1.
        iteration: Steps done at its end.
        learning_rate: Learning rate of its last step.
        losses: Mean of the total loss (`total`) and of each unweighted term over the steps that were taken; of a term
            that is not in every step, such as the consistency, over those in which it was not 0.
        skipped_steps: Steps skipped because loss or gradient was not finite.
        dice_before: Mean Dice of the validation pairs before registration; None without validation or labels.
        dice_after: The same after registration.
        folding_percent: Mean share of folding voxels, in percent; None without validation.
        similarity_loss: Mean similarity term over the validation pairs; None without validation.
        seconds: Duration with validation.
        data_wait_fraction: Share of `seconds` spent waiting for the next batch, 0 to 1.
        step_seconds: Median duration of its steps, waiting for the batch included; None where it was not measured.
        score: What the best epoch is chosen by, on the validation pairs: Dice less ten times the folding fraction,
            or, without labels, less the similarity term; None without validation.
        smoothed_score: Moving average of the scores so far; None without validation.
        is_best: Whether this epoch's weights became the best checkpoint.
    """

    epoch: int
    iteration: int
    learning_rate: float
    losses: dict[str, float]
    skipped_steps: int
    dice_before: float | None
    dice_after: float | None
    folding_percent: float | None
    similarity_loss: float | None
    seconds: float
    data_wait_fraction: float
    step_seconds: float | None = None
    score: float | None = None
    smoothed_score: float | None = None
    is_best: bool = False


class Observer(Protocol):
    """Watches a run."""

    def on_start(self, history: Sequence[EpochRecord]) -> None:
        """Take note of the epochs that a resumed run has behind it (none for a new run)."""

    def on_epoch_end(self, history: Sequence[EpochRecord]) -> None:
        """Take note of a finished epoch, the last of `history`."""

    def on_end(self) -> None:
        """Close what is open: the run is finished, was stopped, or has failed."""


@contextmanager
def run_log(folder: Path) -> Iterator[Path]:
    """Append everything that the package logs, from INFO on, to the folder's training log.

    Args:
        folder: Folder of the fold; made if missing.

    Yields:
        Path of the log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    package = logging.getLogger("biasreg")
    level = package.level
    handler = logging.FileHandler(folder / LOG_FILE, encoding="utf-8")
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    package.addHandler(handler)
    if package.getEffectiveLevel() > logging.INFO:
        package.setLevel(logging.INFO)
    try:
        yield folder / LOG_FILE
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()


class EpochLog:
    """Logs one readable line per epoch.

    Args:
        epochs: Number of epochs of the run.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    def on_start(self, history: Sequence[EpochRecord]) -> None:
        """Say where a resumed run goes on."""
        if history:
            logger.info("%d of %d epochs are done", len(history), self._epochs)

    def on_epoch_end(self, history: Sequence[EpochRecord]) -> None:
        """Log the last epoch, and when the run will be finished at this pace."""
        left = remaining_seconds(history, self._epochs)
        eta = f" | ETA {describe_seconds(left)}" if left else ""
        logger.info("%s%s", describe(history[-1], self._epochs), eta)

    def on_end(self) -> None:
        """Do nothing."""


class MetricsFile:
    """Writes one strict JSON object per epoch, each epoch once.

    Args:
        path: The `.jsonl` file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_start(self, history: Sequence[EpochRecord]) -> None:
        """Write the file anew, so that it holds what the checkpoint knows and nothing else."""
        with atomic_write(self._path) as temporary:
            temporary.write_text("".join(_line(record) for record in history), encoding="utf-8")

    def on_epoch_end(self, history: Sequence[EpochRecord]) -> None:
        """Append the last epoch."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(history[-1]))

    def on_end(self) -> None:
        """Do nothing: the file is closed after each line."""


def clear_pictures(folder: Path) -> None:
    """Remove the pictures of an earlier run, and nothing else.

    Args:
        folder: Folder of the fold.
    """
    for path in (folder / PICTURES_FOLDER).glob("epoch_*.png"):
        path.unlink()


def describe(record: EpochRecord, epochs: int) -> str:
    """Say in one line what happened in an epoch.

    Args:
        record: The epoch.
        epochs: Number of epochs of the run.
    """
    terms = ", ".join(f"{name} {value:.4f}" for name, value in record.losses.items() if name != "total")
    parts = [f"loss {record.losses['total']:.4f} ({terms})" if record.losses else "no step was taken"]
    if record.dice_before is not None and record.dice_after is not None:
        parts.append(f"Dice {record.dice_before:.4f} -> {record.dice_after:.4f}")
    elif record.similarity_loss is not None:
        parts.append(f"validation similarity loss {record.similarity_loss:.4f}")
    if record.folding_percent is not None:
        parts.append(f"folding {record.folding_percent:.3f} %")
    if record.is_best:
        parts.append("best so far")
    if record.skipped_steps:
        parts.append(f"{record.skipped_steps} steps skipped")
    step = "" if record.step_seconds is None else f" ({record.step_seconds:.3f} s a step)"
    parts.append(f"{record.seconds:.1f} s{step}, {record.data_wait_fraction:.0%} of it waiting for data")
    return f"epoch {record.epoch}/{epochs}: " + " | ".join(parts)


def remaining_seconds(history: Sequence[EpochRecord], epochs: int) -> float:
    """Estimate how long the rest of a run takes: the epochs left, times the median of the last five.

    Args:
        history: Finished epochs, at least one.
        epochs: Number of epochs of the run.

    Returns:
        Seconds; 0 for a finished run.
    """
    left = max(0, epochs - len(history))
    return left * median(record.seconds for record in history[-RECENT_EPOCHS:])


def describe_seconds(seconds: float) -> str:
    """Say a duration in its two largest units.

    Args:
        seconds: The duration, at least 0.

    Returns:
        For example `40 s`, `12 min`, `3 h 05 min` or `2 d 04 h`.
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def _line(record: EpochRecord) -> str:
    return json.dumps(to_json(record), allow_nan=False) + "\n"
