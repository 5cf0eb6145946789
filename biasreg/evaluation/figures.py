"""A picture of one registered pair. Drawn with matplotlib's objects, never through pyplot's global state."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import CenteredNorm, Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from biasreg.core.serialization import atomic_write

# Okabe and Ito's colours, told apart with every common colour vision.
FIXED_COLOUR = "#56B4E9"
WARPED_COLOUR = "#E69F00"
FOLDING_COLOUR = "#00E5EE"  # cyan: both ends of the diverging colours are dark

WINDOW_PERCENTILES = (0.5, 99.5)
GRID_LINES = 16
PANEL_INCHES = 2.4
DOTS_PER_INCH = 110


class View(NamedTuple):
    """One way to cut a RAS array: the axis cut across, and the array axes shown horizontally and vertically.

    The vertical axis points up; the horizontal one points *left*, which puts the patient's right on the left of axial
    and coronal views, and the face to the left in sagittal ones, as radiologists see them.
    """

    name: str
    cut: int
    horizontal: int
    vertical: int
    left: str
    right: str


VIEWS = (
    View("axial", cut=2, horizontal=0, vertical=1, left="R", right="L"),
    View("coronal", cut=1, horizontal=0, vertical=2, left="R", right="L"),
    View("sagittal", cut=0, horizontal=1, vertical=2, left="A", right="P"),
)
COLUMNS = ("fixed", "moving", "warped", "overlay", "displacement", "Jacobian determinant")


class Panel(NamedTuple):
    """Where to draw, and which slice of which view."""

    axes: Axes
    view: View
    position: int
    spacing: tuple[float, ...]

    def cut_out(self, volume: NDArray) -> NDArray:
        """Cut the slice out of (X, Y, Z), as (vertical, horizontal)."""
        plane = np.take(volume, self.position, axis=self.view.cut)
        return plane.T  # the two axes left are (horizontal, vertical) in every view

    @property
    def steps(self) -> tuple[float, float]:
        """Voxel size in mm, horizontally and vertically."""
        return self.spacing[self.view.horizontal], self.spacing[self.view.vertical]

    def show(self, plane: NDArray, **options: Any) -> None:
        """Draw a slice at its physical size and the right way round."""
        height, width = plane.shape[:2]
        across, up = self.steps
        extent = (-0.5 * across, (width - 0.5) * across, -0.5 * up, (height - 0.5) * up)
        self.axes.imshow(plane, origin="lower", extent=extent, aspect="equal", interpolation="nearest", **options)
        self.axes.set_xlim(extent[1], extent[0])  # reversed: to the left
        self.axes.set_ylim(extent[2], extent[3])


class Volumes(NamedTuple):
    """What a picture shows, each (X, Y, Z) but the displacement (3, X, Y, Z); None is not shown."""

    fixed: NDArray
    moving: NDArray
    warped: NDArray
    displacement: NDArray
    determinant: NDArray
    fixed_labels: NDArray | None
    warped_labels: NDArray | None
    moving_labels: NDArray | None = None


def pair_figure(  # noqa: PLR0913  one argument for each thing shown
    path: Path,
    fixed: NDArray,
    moving: NDArray,
    warped: NDArray,
    displacement_voxels: NDArray,
    determinant: NDArray,
    *,
    fixed_labels: NDArray | None = None,
    warped_labels: NDArray | None = None,
    spacing: Sequence[float],
    title: str = "",
) -> None:
    """Draw a registered pair as PNG: three orthogonal slices by six columns.

    Columns: fixed, moving and warped image; overlay (contours of the labels on the fixed image, or fixed in magenta and
    warped in green where there are no labels); length of the displacement in mm under the deformed grid; Jacobian
    determinant around 1 with folding in cyan. Slices go through the centroid of the fixed labels, or the centre.

    Args:
        path: Where to write the PNG.
        fixed: (X, Y, Z), on a grid with RAS axes, as all others.
        moving: (X, Y, Z).
        warped: (X, Y, Z).
        displacement_voxels: (3, X, Y, Z), voxels.
        determinant: (X, Y, Z), of x + u(x).
        fixed_labels: (X, Y, Z) integer.
        warped_labels: (X, Y, Z) integer.
        spacing: Voxel size in mm along X, Y, Z.
        title: Written on top.

    Raises:
        ValueError: The arrays are not all on one grid.
    """
    volumes = Volumes(fixed, moving, warped, displacement_voxels, determinant, fixed_labels, warped_labels)
    _check_shapes(volumes)
    figure = Figure(layout="constrained", dpi=DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    panels = lay_out(figure, volumes, tuple(float(size) for size in spacing), COLUMNS)
    for row in panels:
        _mark_sides(row[0])
    _draw_images(panels, volumes)
    _draw_overlays([row[3] for row in panels], volumes)
    _draw_displacement(figure, [row[4] for row in panels], volumes)
    _draw_determinant(figure, [row[5] for row in panels], volumes)
    if title:
        figure.suptitle(title, fontsize=11)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def _check_shapes(volumes: Volumes) -> None:
    shape = volumes.fixed.shape
    for name, array in volumes._asdict().items():
        expected = (3, *shape) if name == "displacement" else shape
        if array is not None and array.shape != expected:
            raise ValueError(f"{name} has shape {array.shape}, expected {expected} as the fixed image has {shape}")


def lay_out(figure: Figure, volumes: Volumes, spacing: tuple[float, ...], columns: Sequence[str]) -> list[list[Panel]]:
    """Make the panels: a row for each view, as high as its slices are in mm, through the middle of the anatomy.

    Args:
        figure: Empty; its size is set.
        volumes: What will be shown.
        spacing: Voxel size in mm along X, Y, Z.
        columns: Titles.

    Returns:
        Panels by row and column, without ticks.
    """
    size_mm = [count * step for count, step in zip(volumes.fixed.shape, spacing, strict=True)]
    heights = [size_mm[view.vertical] for view in VIEWS]
    widest = max(size_mm[view.horizontal] for view in VIEWS)
    height_inches = PANEL_INCHES * sum(heights) / widest
    figure.set_size_inches(PANEL_INCHES * len(columns), height_inches + 1.1)  # 1.1: title and colour bars
    grid = figure.subplots(len(VIEWS), len(columns), squeeze=False, gridspec_kw={"height_ratios": heights})
    centre = _centre(volumes)
    for axes, name in zip(grid[0], columns, strict=True):
        axes.set_title(name, fontsize=9)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    return [
        [Panel(axes, view, centre[view.cut], spacing) for axes in row] for view, row in zip(VIEWS, grid, strict=True)
    ]


def _centre(volumes: Volumes) -> tuple[int, ...]:
    """Voxel that the slices go through."""
    if volumes.fixed_labels is not None and volumes.fixed_labels.any():
        inside = np.nonzero(volumes.fixed_labels)
        return tuple(round(float(axis.mean())) for axis in inside)
    return tuple(size // 2 for size in volumes.fixed.shape)


def _mark_sides(panel: Panel) -> None:
    panel.axes.set_ylabel(panel.view.name, fontsize=9)
    for x, side in ((0.03, panel.view.left), (0.97, panel.view.right)):
        panel.axes.text(
            x,
            0.5,
            side,
            transform=panel.axes.transAxes,
            color=FIXED_COLOUR,
            fontsize=8,
            ha="left" if x < 0.5 else "right",
            va="center",
        )


def _draw_images(panels: list[list[Panel]], volumes: Volumes) -> None:
    """Draw fixed, moving and warped; the last two share their window."""
    moving_window = _window(volumes.moving)
    columns = (
        (volumes.fixed, _window(volumes.fixed)),
        (volumes.moving, moving_window),
        (volumes.warped, moving_window),
    )
    for row in panels:
        for panel, (volume, norm) in zip(row, columns, strict=False):
            panel.show(panel.cut_out(volume), cmap="gray", norm=norm)


def _window(volume: NDArray) -> Normalize:
    lower, upper = np.percentile(volume, WINDOW_PERCENTILES)
    return Normalize(float(lower), float(upper) if upper > lower else float(lower) + 1.0, clip=True)


def _draw_overlays(panels: Sequence[Panel], volumes: Volumes) -> None:
    fixed_norm, warped_norm = _window(volumes.fixed), _window(volumes.moving)
    has_labels = volumes.fixed_labels is not None or volumes.warped_labels is not None
    for panel in panels:
        fixed = np.asarray(fixed_norm(panel.cut_out(volumes.fixed)))
        if has_labels:
            panel.show(fixed, cmap="gray", vmin=0, vmax=1)
            draw_contours(panel, volumes.fixed_labels, FIXED_COLOUR)
            draw_contours(panel, volumes.warped_labels, WARPED_COLOUR)
        else:
            warped = np.asarray(warped_norm(panel.cut_out(volumes.warped)))
            panel.show(np.stack([fixed, warped, fixed], axis=-1))
    if has_labels:
        _draw_legend(panels[-1].axes, "contours", (FIXED_COLOUR, WARPED_COLOUR))
    else:
        _draw_legend(panels[-1].axes, "images", ("magenta", "green"))


def draw_contours(panel: Panel, labels: NDArray | None, colour: str) -> None:
    """Draw the outline of each label in the plane of a panel.

    Args:
        panel: Where.
        labels: (X, Y, Z) integer; None draws nothing.
        colour: Of all of them.
    """
    if labels is None:
        return
    plane = panel.cut_out(labels)
    across, up = panel.steps
    x, y = np.arange(plane.shape[1]) * across, np.arange(plane.shape[0]) * up
    for value in np.unique(plane):
        inside = plane == value
        if value != 0 and not inside.all():  # a constant slice has no contour
            panel.axes.contour(x, y, inside.astype(np.float32), levels=[0.5], colors=[colour], linewidths=0.8)


def _draw_displacement(figure: Figure, panels: Sequence[Panel], volumes: Volumes) -> None:
    spacing = np.asarray(panels[0].spacing, dtype=np.float32)
    length_mm = np.sqrt(np.tensordot(spacing**2, np.square(volumes.displacement, dtype=np.float32), axes=(0, 0)))
    largest = max(float(panel.cut_out(length_mm).max()) for panel in panels)
    norm, colours = Normalize(0.0, largest or 1.0), colormaps["cividis"]
    for panel in panels:
        panel.show(panel.cut_out(length_mm), cmap=colours, norm=norm)
        lines = LineCollection(list(deformed_grid(panel, volumes.displacement)), colors="white", linewidths=0.5)
        panel.axes.add_collection(lines, autolim=False)
    _add_bar(figure, panels, norm, colours, "length, mm")


def deformed_grid(panel: Panel, displacement: NDArray) -> Iterator[NDArray]:
    """Give the lines of a grid that the displacement deforms, in the plane of a panel.

    Args:
        panel: Where.
        displacement: u, (3, X, Y, Z) in voxels.

    Yields:
        Lines (N, 2) in mm, each point x moved to the in-plane part of x + u(x).
    """
    across, up = panel.steps
    u = panel.cut_out(displacement[panel.view.horizontal])  # (vertical, horizontal)
    v = panel.cut_out(displacement[panel.view.vertical])
    rows, columns = np.mgrid[: u.shape[0], : u.shape[1]]
    points = np.stack([(columns + u) * across, (rows + v) * up], axis=-1)  # (vertical, horizontal, 2)
    distance = max(u.shape[1] * across, u.shape[0] * up) / GRID_LINES
    yield from points[:: max(1, round(distance / up))]
    yield from points[:, :: max(1, round(distance / across))].swapaxes(0, 1)


def _draw_determinant(figure: Figure, panels: Sequence[Panel], volumes: Volumes) -> None:
    norm, colours = CenteredNorm(vcenter=1.0, halfrange=1.0), colormaps["PuOr"]
    for panel in panels:
        plane = panel.cut_out(volumes.determinant)
        panel.show(plane, cmap=colours, norm=norm)
        folded = np.ma.masked_where(plane > 0, np.ones(plane.shape))
        panel.show(folded, cmap=ListedColormap([FOLDING_COLOUR]))
    percent = 100.0 * float(np.mean(~(volumes.determinant > 0)))
    _add_bar(figure, panels, norm, colours, f"cyan: folding, {percent:.3g} % of voxels")


def _add_bar(figure: Figure, panels: Sequence[Panel], norm: Normalize, colours: Colormap, label: str) -> None:
    bar = figure.colorbar(
        ScalarMappable(norm, colours), ax=[panel.axes for panel in panels], location="bottom", fraction=0.04, pad=0.02
    )
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _draw_legend(axes: Axes, kind: str, colours: tuple[str, str]) -> None:
    """Name the two colours below a panel."""
    for x, text, colour in ((0.0, f"{kind}:", "black"), (0.42, "fixed", colours[0]), (0.66, "warped", colours[1])):
        axes.text(x, -0.04, text, transform=axes.transAxes, color=colour, fontsize=8, ha="left", va="top")
