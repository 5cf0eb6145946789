"""Pictures of one fixed validation pair, epoch by epoch: what the numbers look like."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import CenteredNorm, ListedColormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from biasreg.core.serialization import atomic_write
from biasreg.evaluation.figures import (
    DOTS_PER_INCH,
    FIXED_COLOUR,
    FOLDING_COLOUR,
    WARPED_COLOUR,
    Panel,
    Volumes,
    deformed_grid,
    draw_contours,
    lay_out,
)
from biasreg.losses.objective import ObjectiveSettings, PairBatch
from biasreg.network.device import autocast
from biasreg.planning.pairing import Pair
from biasreg.spatial.jacobian import folding_fraction, jacobian_determinant
from biasreg.spatial.warp import warp, warp_labels
from biasreg.training.data import CaseSource, to_device
from biasreg.training.observers import PICTURES_FOLDER
from biasreg.training.validation import labels_present, mean_dice

logger = logging.getLogger(__name__)

COLUMNS = ("fixed", "moving", "warped", "fixed − moving", "fixed − warped", "grid and Jacobian determinant")
INTENSITY = Normalize(0.0, 1.0, clip=True)  # that of preprocessed images
DIFFERENCE_COLOURS, DETERMINANT_COLOURS = "RdBu", "PuOr"
DIFFERENCE = CenteredNorm(vcenter=0.0, halfrange=0.5)
DETERMINANT = CenteredNorm(vcenter=1.0, halfrange=1.0)
PALE = 0.6  # opacity of the determinant, so that black lines are seen on both of its ends


class PairPictures:
    """Draws the same pair whenever it is called, into `pictures/epoch_0010.png` and so on.

    A file that cannot be written is a warning: it is no reason to lose a training run.

    Args:
        source: Where cases are read from.
        pair: (moving, fixed) case identifiers.
        folder: Folder of the fold.
        settings: Number of labels, and spacing.
    """

    def __init__(self, source: CaseSource, pair: Pair, folder: Path, settings: ObjectiveSettings) -> None:
        self._source, self._pair, self._settings = source, pair, settings
        self._folder = folder / PICTURES_FOLDER

    def __call__(self, network: nn.Module, epoch: int) -> None:
        """Register the pair and draw it.

        Args:
            network: On any device; left in the mode that it was in.
            epoch: Number of finished epochs, for the name of the file.
        """
        batch = to_device(self._source.batch((self._pair,)), next(network.parameters()).device)
        moving, fixed = self._pair
        figure = draw_validation_pair(network, batch, self._settings, f"epoch {epoch}: {moving} → {fixed}")
        try:
            with atomic_write(self._folder / f"epoch_{epoch:04d}.png") as temporary:
                figure.savefig(temporary, format="png")
        except OSError as error:
            logger.warning("the picture of epoch %d could not be written: %s", epoch, error)


def draw_validation_pair(network: nn.Module, batch: PairBatch, settings: ObjectiveSettings, title: str = "") -> Figure:
    """Register one pair and draw it: three planes through the fixed labels' centre, by six columns.

    Columns: fixed, moving and warped image with the contours of their labels (those of the fixed image on the warped
    one too); the difference to the fixed image before and after registration; the deformed grid over the Jacobian
    determinant, folding in cyan. Of several channels the first is shown.

    Args:
        network: Returns an output with a `displacement` (1, 3, X, Y, Z) in voxels; left in the mode that it was in.
        batch: One pair, on the network's device, on a grid with RAS axes.
        settings: Number of labels, and spacing.
        title: Written on top, before Dice and folding.

    Returns:
        The figure.

    Raises:
        ValueError: If the batch holds another number of pairs than one.
    """
    if len(batch.moving) != 1:
        raise ValueError(f"the batch holds {len(batch.moving)} pairs, but one picture shows 1 · give one pair")
    volumes, scores = _register(network, batch, settings)
    figure = Figure(layout="constrained", dpi=DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    panels = lay_out(figure, volumes, settings.spacing, COLUMNS)
    for row in panels:
        row[0].axes.set_ylabel(f"{row[0].view.name}, {row[0].view.left} – {row[0].view.right}", fontsize=9)
        _draw_images(row, volumes)
        _draw_differences(row, volumes)
        _draw_transform(row[5], volumes)
    last = panels[-1]
    _add_bar(figure, last[3:5], ScalarMappable(DIFFERENCE, DIFFERENCE_COLOURS), "difference of intensities in [0, 1]")
    _add_bar(figure, last[5:], ScalarMappable(DETERMINANT, DETERMINANT_COLOURS), "determinant; cyan: folding", PALE)
    for x, text, colour in ((0.0, "fixed labels", FIXED_COLOUR), (0.5, "moving, warped labels", WARPED_COLOUR)):
        if volumes.fixed_labels is not None:
            last[0].axes.text(x, -0.04, text, transform=last[0].axes.transAxes, color=colour, fontsize=8, va="top")
    figure.suptitle(f"{title}  ·  {scores}" if title else scores, fontsize=11)
    return figure


@torch.inference_mode()
def _register(network: nn.Module, batch: PairBatch, settings: ObjectiveSettings) -> tuple[Volumes, str]:
    """Register a pair; return its volumes, and its Dice and folding in words."""
    was_training = network.training
    network.eval()
    try:
        with autocast(batch.moving.device):
            displacement = network(batch.moving, batch.fixed).displacement.float()
    finally:
        network.train(was_training)
    count = settings.num_labels
    fixed_labels = batch.fixed_labels if count > 1 and bool(batch.fixed_annotated.all()) else None
    moving_labels = batch.moving_labels if count > 1 and bool(batch.moving_annotated.all()) else None
    warped_labels = None if moving_labels is None else warp_labels(moving_labels, displacement, range(1, count))
    determinant = jacobian_determinant(displacement)
    volumes = Volumes(
        fixed=_volume(batch.fixed),
        moving=_volume(batch.moving),
        warped=_volume(warp(batch.moving.float(), displacement, padding="zeros")),
        displacement=displacement[0].cpu().numpy(),
        determinant=determinant[0].cpu().numpy(),
        fixed_labels=None if fixed_labels is None else _volume(fixed_labels),
        moving_labels=None if moving_labels is None else _volume(moving_labels),
        warped_labels=None if warped_labels is None else _volume(warped_labels),
    )
    words = f"folding {100 * float(folding_fraction(determinant)):.3f} %"
    if fixed_labels is None or moving_labels is None or warped_labels is None:
        return volumes, words
    present = labels_present(moving_labels, count)
    before, after = (mean_dice(labels, fixed_labels, present) for labels in (moving_labels, warped_labels))
    return volumes, words if before is None or after is None else f"Dice {before:.3f} → {after:.3f}, {words}"


def _volume(tensor: Tensor) -> NDArray:
    """Take the first channel of the first pair, (X, Y, Z)."""
    array: NDArray = tensor[0, 0].cpu().numpy()
    return array


def _draw_images(row: Sequence[Panel], volumes: Volumes) -> None:
    for panel, image in zip(row, (volumes.fixed, volumes.moving, volumes.warped), strict=False):
        panel.show(panel.cut_out(image), cmap="gray", norm=INTENSITY)
    draw_contours(row[0], volumes.fixed_labels, FIXED_COLOUR)
    draw_contours(row[1], volumes.moving_labels, WARPED_COLOUR)
    draw_contours(row[2], volumes.fixed_labels, FIXED_COLOUR)
    draw_contours(row[2], volumes.warped_labels, WARPED_COLOUR)


def _draw_differences(row: Sequence[Panel], volumes: Volumes) -> None:
    for panel, image in zip(row[3:5], (volumes.moving, volumes.warped), strict=True):
        panel.show(panel.cut_out(volumes.fixed) - panel.cut_out(image), cmap=DIFFERENCE_COLOURS, norm=DIFFERENCE)


def _draw_transform(panel: Panel, volumes: Volumes) -> None:
    plane = panel.cut_out(volumes.determinant)
    panel.show(plane, cmap=DETERMINANT_COLOURS, norm=DETERMINANT, alpha=PALE)
    panel.show(np.ma.masked_where(plane > 0, np.ones(plane.shape)), cmap=ListedColormap([FOLDING_COLOUR]))
    lines = LineCollection(list(deformed_grid(panel, volumes.displacement)), colors="black", linewidths=0.5)
    panel.axes.add_collection(lines, autolim=False)


def _add_bar(figure: Figure, panels: Sequence[Panel], colours: ScalarMappable, label: str, alpha: float = 1.0) -> None:
    axes = [panel.axes for panel in panels]
    bar = figure.colorbar(colours, ax=axes, location="bottom", fraction=0.04, pad=0.02, alpha=alpha)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
