"""A picture of the course of a run."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from biasreg.core.serialization import atomic_write
from biasreg.training.observers import EpochRecord


class ProgressFigure:
    """Draws the course of the run: losses, Dice, folding, learning rate and time per epoch.

    Args:
        path: The `.png` file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_start(self, history: Sequence[EpochRecord]) -> None:
        """Do nothing: the picture of the last epoch is still right."""

    def on_epoch_end(self, history: Sequence[EpochRecord]) -> None:
        """Draw all epochs."""
        figure = draw_progress(history)
        with atomic_write(self._path) as temporary:
            figure.savefig(temporary, dpi=100)

    def on_end(self) -> None:
        """Do nothing."""


def draw_progress(history: Sequence[EpochRecord]) -> Figure:
    """Draw the course of a run.

    Args:
        history: Its epochs, at least one.
    """
    figure = Figure(figsize=(12, 10), layout="constrained")
    FigureCanvasAgg(figure)
    losses, dice, folding, rate, time, waiting = figure.subplots(3, 2, sharex=True).flat
    for name in sorted({name for record in history for name in record.losses}):
        _plot(losses, history, [record.losses.get(name) for record in history], name)
    _plot(dice, history, [record.dice_before for record in history], "before")
    _plot(dice, history, [record.dice_after for record in history], "after")
    _plot(folding, history, [record.folding_percent for record in history], "folding")
    _plot(rate, history, [record.learning_rate for record in history], "learning rate")
    _plot(time, history, [record.seconds for record in history], "epoch")
    _plot(waiting, history, [100 * record.data_wait_fraction for record in history], "waiting for data")
    titles = ("loss terms (unweighted)", "validation Dice", "folding voxels (%)", "learning rate")
    for axes, title in zip(figure.axes, (*titles, "seconds per epoch", "waiting for data (%)"), strict=True):
        axes.set_title(title)
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend(fontsize="small")
    for axes in (time, waiting):
        axes.set_xlabel("epoch")
    return figure


def _plot(axes: Axes, history: Sequence[EpochRecord], values: Sequence[float | None], label: str) -> None:
    known = [(record.epoch, value) for record, value in zip(history, values, strict=True) if value is not None]
    if known:
        axes.plot(*zip(*known, strict=True), label=label, marker="." if len(known) < 30 else None)
