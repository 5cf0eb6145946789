"""The course of training of every fold."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from biasreg.core.errors import BiasregError, RecordError
from biasreg.core.serialization import from_json, read_record
from biasreg.inference.models import TrainedModel, training_notices
from biasreg.report.page import Section, render
from biasreg.report.plotting import COLOURS, FigureShelf, label_axes, new_figure
from biasreg.training.observers import METRICS_FILE, EpochRecord, describe_seconds
from biasreg.training.trainer import VALIDATION_FILE
from biasreg.training.validation import ValidationResult

LEAST_FOLDING_PERCENT = 0.01  # the scale of the figure goes so far at least, or single voxels would look like many

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldCourse:
    """What is known of one fold's training.

    Attributes:
        name: Its folder's name without `fold_`.
        history: Its epochs.
        validation: Scores at the best epoch; None without validation.
    """

    name: str
    history: tuple[EpochRecord, ...]
    validation: ValidationResult | None

    @property
    def best(self) -> EpochRecord | None:
        """The epoch whose weights are the best checkpoint."""
        if self.validation is not None:
            return next((record for record in self.history if record.epoch == self.validation.epoch), None)
        return next((record for record in reversed(self.history) if record.is_best), None)

    @property
    def duration(self) -> str:
        """How long it trained."""
        return describe_seconds(sum(record.seconds for record in self.history))


def training_section(model: TrainedModel, shelf: FigureShelf) -> Section | str:
    """Show the course of each fold.

    Args:
        model: The trained model.
        shelf: Takes the figures.

    Returns:
        The section, or why there is none.
    """
    folds = [_read_fold(checkpoint.parent) for checkpoint in model.checkpoints]
    folds = [fold for fold in folds if fold.history]
    if not folds:
        return f"no {METRICS_FILE} in the folds of {model.folder}"
    caption = (
        "Total loss; Dice of the validation pairs before (dotted) and after registration, on the network's grid, with "
        "a dot at the epoch that is used; terms of the loss, unweighted, as means over the folds; share of folding "
        "voxels."
    )
    figure = shelf.show(_draw(folds), "training", caption, minimum_width=760)
    notices = _notices(model)
    return Section("training", "Training", render("training.html.j2", folds=folds, figure=figure, notices=notices))


def read_history(path: Path) -> tuple[EpochRecord, ...]:
    """Read the epochs of a run, up to a line that was cut off.

    Args:
        path: Its `metrics.jsonl`.

    Returns:
        The epochs; none where there is no such file.
    """
    if not path.is_file():
        return ()
    history = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            history.append(from_json(EpochRecord, json.loads(line), where=str(path)))
        except (json.JSONDecodeError, RecordError) as error:
            logger.warning("%s: a line is left out of the report: %s", path, error)
    return tuple(history)


def _read_fold(folder: Path) -> FoldCourse:
    path = folder / VALIDATION_FILE
    result = None
    if path.is_file():
        try:
            result = read_record(path, ValidationResult)
        except RecordError as error:
            logger.warning("left out of the report: %s", error)
    return FoldCourse(folder.name.removeprefix("fold_"), read_history(folder / METRICS_FILE), result)


def _notices(model: TrainedModel) -> tuple[str, ...]:
    try:
        return training_notices(model)
    except BiasregError as error:
        return (str(error),)


def _draw(folds: Sequence[FoldCourse]) -> Figure:
    figure = new_figure(9.0, 5.0)
    loss, dice, terms, folding = figure.subplots(2, 2, sharex=True).flat
    for index, fold in enumerate(folds):
        colour = COLOURS[index % len(COLOURS)]
        name = f"fold {fold.name}"
        _plot(loss, fold.history, [record.losses.get("total") for record in fold.history], color=colour, label=name)
        _plot(dice, fold.history, [record.dice_after for record in fold.history], color=colour, label=name)
        _plot(dice, fold.history, [record.dice_before for record in fold.history], color=colour, linestyle=":")
        _plot(folding, fold.history, [record.folding_percent for record in fold.history], color=colour, label=name)
        if fold.best is not None and fold.best.dice_after is not None:
            dice.plot([fold.best.epoch], [fold.best.dice_after], "o", color=colour, markersize=5)
    for index, (name, (epochs, values)) in enumerate(_mean_terms(folds).items()):
        terms.plot(epochs, values, color=COLOURS[index % len(COLOURS)], label=name)
    label_axes(loss, "Loss")
    label_axes(dice, "Validation Dice")
    label_axes(terms, "Terms of the loss", "epoch")
    label_axes(folding, "Folding voxels, %", "epoch")
    folding.set_ylim(0, max(LEAST_FOLDING_PERCENT, folding.get_ylim()[1]))
    if len(folds) > 1:
        loss.legend()
    if terms.lines:
        terms.legend(ncols=2)
    for axes in (dice, folding):
        if not axes.lines:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center")
    return figure


def _plot(axes: Axes, history: Sequence[EpochRecord], values: Sequence[float | None], **look: Any) -> None:
    known = [(record.epoch, value) for record, value in zip(history, values, strict=True) if value is not None]
    if known:
        axes.plot(*zip(*known, strict=True), marker="." if len(known) < 30 else None, **look)


def _mean_terms(folds: Sequence[FoldCourse]) -> Mapping[str, tuple[list[int], list[float]]]:
    """Mean of each term over the folds, by epoch."""
    found: dict[str, dict[int, list[float]]] = {}
    for fold in folds:
        for record in fold.history:
            for name, value in record.losses.items():
                if name != "total":
                    found.setdefault(name, {}).setdefault(record.epoch, []).append(value)
    return {
        name: (sorted(epochs), [float(np.mean(epochs[epoch])) for epoch in sorted(epochs)])
        for name, epochs in found.items()
    }
