"""Progressive registration: the pair after each level, coarse to fine."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from biasreg.core.errors import BiasregError
from biasreg.evaluation.figures import Panel
from biasreg.evaluation.metrics import dice_per_label, field_metrics
from biasreg.evaluation.summary import mean_of_known
from biasreg.report.packing import window
from biasreg.report.page import Section, render
from biasreg.report.pictures import best_view, length_mm, show_grid, show_image, show_outlines
from biasreg.report.plotting import FigureShelf, new_figure
from biasreg.report.predictions import PredictedPair
from biasreg.report.ranking import PairRow
from biasreg.report.volumes import PairVolumes, SourceImages, pair_volumes, read_field, read_sources

logger = logging.getLogger(__name__)

PAIR_COUNT = 2
_WIDTH = 9.0


@dataclass(frozen=True)
class LevelStep:
    """The pair after one level.

    Attributes:
        name: `not registered`, or the level.
        dice: Mean Dice over the labels in both maps, 0 to 1; None without label maps.
        folding_percent: Share of folding voxels, 0 to 100; None where nothing was registered.
        longest_mm: Longest displacement.
        volumes: The pair; None for the pair that is not registered.
    """

    name: str
    dice: float | None
    folding_percent: float | None
    longest_mm: float
    volumes: PairVolumes


def levels_section(rows: Sequence[PairRow], shelf: FigureShelf) -> Section | str:
    """Show what each level adds, for the first pairs whose levels were kept.

    Args:
        rows: The pairs, those to show first.
        shelf: Takes the figures.

    Returns:
        The section, or why there is none.
    """
    kept = [row.pair for row in rows if len(row.pair.level_fields) > 1]
    if not kept:
        return "no pair has the fields of its levels; predict with --save levels"
    parts: list[tuple[str, list[LevelStep], Markup]] = []
    failures = []
    for pair in kept:
        if len(parts) == PAIR_COUNT:
            break
        try:
            steps = _steps(pair)
        except BiasregError as error:
            failures.append(f"{pair.name}: {error}")
            continue
        caption = (
            f"{pair.name}: the moving image as it is warped after each level, with the outlines of the fixed (blue) "
            "and of the warped labels (orange), and the deformed grid over the length of the displacement, on one "
            "scale (the paper's Figure 17)."
        )
        parts.append((pair.name, steps, shelf.show(_draw(steps), f"levels_{pair.name}", caption, minimum_width=760)))
    if not parts:
        return "; ".join(failures)
    return Section("levels", "Level by level", render("levels.html.j2", parts=parts, failures=failures))


def _steps(pair: PredictedPair) -> list[LevelStep]:
    sources = read_sources(pair)
    steps = []
    for name, path in pair.level_fields.items():
        field = read_field(path, sources.fixed.geometry)
        volumes = pair_volumes(sources, field)
        folding = field_metrics(field, sources.fixed.geometry).folding_percent
        steps.append(
            LevelStep(
                name, _dice(sources, volumes.warped_labels, volumes), folding, float(length_mm(volumes).max()), volumes
            )
        )
    first = steps[0].volumes
    return [LevelStep("not registered", _dice(sources, first.moving_labels, first), None, 0.0, first), *steps]


def _dice(sources: SourceImages, labels: NDArray | None, volumes: PairVolumes) -> float | None:
    if labels is None or volumes.fixed_labels is None or sources.moving_labels is None:
        return None
    values = sorted(set(np.unique(sources.moving_labels.array)) & set(np.unique(volumes.fixed_labels)) - {0})
    return mean_of_known(dice_per_label(labels, volumes.fixed_labels, [int(value) for value in values]).values())


def _draw(steps: Sequence[LevelStep]) -> Figure:
    final = steps[-1].volumes
    view, position = best_view(final)
    spacing = final.grid.spacing
    width, height = (final.grid.shape[axis] * spacing[axis] for axis in (view.horizontal, view.vertical))
    columns = len(steps) + 1
    figure = new_figure(_WIDTH, 2 * (_WIDTH / columns) * height / width + 0.6)
    grid = figure.subplots(2, columns, squeeze=False)
    panels = [[Panel(axes, view, position, spacing) for axes in row] for row in grid]
    show_image(panels[0][0], final.fixed, window(final.fixed))
    show_outlines(panels[0][0], final.fixed_labels, None)
    grid[0][0].set_title(f"fixed, {view.name}", fontsize=8)
    grid[1][0].set_axis_off()
    longest = max(step.longest_mm for step in steps) or 1.0
    for index, step in enumerate(steps, start=1):
        volumes = step.volumes
        first = index == 1
        image, labels = (volumes.moving, volumes.moving_labels) if first else (volumes.warped, volumes.warped_labels)
        show_image(panels[0][index], image, window(volumes.moving))
        show_outlines(panels[0][index], volumes.fixed_labels, labels)
        grid[0][index].set_title(step.name, fontsize=8)
        if first:
            grid[1][index].set_axis_off()
        else:
            show_grid(panels[1][index], volumes, longest)
        if step.dice is not None:
            grid[0][index].set_xlabel(f"Dice {step.dice:.3f}", fontsize=8)
    return figure
