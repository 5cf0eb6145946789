"""Slices of pairs as figures: images with outlines, deformed grids, colours of features."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from numpy.typing import NDArray

from biasreg.evaluation.figures import (
    FIXED_COLOUR,
    VIEWS,
    WARPED_COLOUR,
    Panel,
    View,
    deformed_grid,
    draw_contours,
)
from biasreg.report.packing import window
from biasreg.report.volumes import PairVolumes

GRID_COLOUR = "#FFFFFF"


def best_view(volumes: PairVolumes) -> tuple[View, int]:
    """Choose the plane, and the slice of it, that shows most of the labels; without labels, of the image.

    Args:
        volumes: The pair.
    """
    labels = volumes.fixed_labels
    inside = labels > 0 if labels is not None and labels.any() else volumes.fixed > window(volumes.fixed)[0]
    if not inside.any():
        inside = np.ones_like(inside)
    best = (VIEWS[0], 0, -1.0)
    for view in VIEWS:
        others = tuple(axis for axis in range(3) if axis != view.cut)
        counts = inside.sum(axis=others)
        area_mm2 = counts.max() * volumes.grid.spacing[others[0]] * volumes.grid.spacing[others[1]]
        if area_mm2 > best[2]:
            best = (view, int(counts.argmax()), float(area_mm2))
    return best[:2]


def show_image(panel: Panel, image: NDArray, norm: tuple[float, float]) -> None:
    """Draw a slice in grey.

    Args:
        panel: Where.
        image: (X, Y, Z).
        norm: Intensities that are black and white.
    """
    panel.show(panel.cut_out(image), cmap="gray", vmin=norm[0], vmax=norm[1])
    finish(panel.axes)


def show_outlines(panel: Panel, fixed: NDArray | None, other: NDArray | None) -> None:
    """Draw the outlines of the fixed and of the moved labels."""
    draw_contours(panel, fixed, FIXED_COLOUR)
    draw_contours(panel, other, WARPED_COLOUR)


def show_grid(panel: Panel, volumes: PairVolumes, longest_mm: float | None = None) -> None:
    """Draw the length of the displacement under the deformed grid.

    Args:
        panel: Where.
        volumes: The pair.
        longest_mm: Length of the brightest colour; None for the longest of the pair.
    """
    length = length_mm(volumes)
    panel.show(panel.cut_out(length), cmap="cividis", vmin=0, vmax=longest_mm or float(length.max()) or 1.0)
    lines = LineCollection(list(deformed_grid(panel, volumes.displacement)), colors=GRID_COLOUR, linewidths=0.6)
    panel.axes.add_collection(lines, autolim=False)
    finish(panel.axes)


def length_mm(volumes: PairVolumes) -> NDArray[np.float32]:
    """Length of the displacement, (X, Y, Z)."""
    spacing = np.array(volumes.grid.spacing, dtype=np.float32).reshape(3, 1, 1, 1)
    return np.sqrt(((volumes.displacement * spacing) ** 2).sum(axis=0))


def show_colours(axes: Axes, plane: NDArray, extent_mm: Sequence[float]) -> None:
    """Draw colours in a plane at its physical size.

    Args:
        axes: Where.
        plane: (vertical, horizontal, 3) in [0, 1], the vertical axis upwards, the horizontal one to the left.
        extent_mm: Width and height.
    """
    width, height = extent_mm
    axes.imshow(plane, origin="lower", extent=(0, width, 0, height), aspect="equal")
    axes.set_xlim(width, 0)
    finish(axes)


def finish(axes: Axes) -> None:
    """Take ticks, grid and frame away; keep the pixels of images as they are, so that files stay small."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for image in axes.images:
        image.set_interpolation("none")
