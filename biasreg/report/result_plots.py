"""The figures of an evaluation: boxes per structure, method against method, easy and hard pairs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from biasreg.evaluation.records import IDENTITY, PairScores, Stratum
from biasreg.evaluation.tables import TITLES
from biasreg.report.dataset_section import box_look
from biasreg.report.material import Material
from biasreg.report.plotting import FAINT, INK, label_axes, method_colours, new_figure

BOXES_PER_ROW = 36
SCATTERS_PER_ROW = 4
_WIDTH = 9.0
_BARS: dict[str, Any] = {"marker": "o", "markersize": 4, "capsize": 2, "elinewidth": 0.9}

Values = Mapping[str, Mapping[str, list[float]]]
"""Values over pairs, by structure and method."""


def draw_boxes(material: Material, metric: str) -> Figure | None:
    """Draw one box per method and structure.

    Args:
        material: What is known, with an evaluation.
        metric: `dice` or `hd95_mm`.

    Returns:
        The figure; None where nothing has the metric.
    """
    methods = material.methods
    values = _values(material, metric)
    if not values:
        return None
    colours = method_colours(methods, material.method, IDENTITY)
    per_row = max(1, BOXES_PER_ROW // max(1, len(methods)))
    names = list(values)
    rows = [names[start : start + per_row] for start in range(0, len(names), per_row)]
    figure = new_figure(_WIDTH, 0.5 + 2.3 * len(rows))
    for axes, row in zip(figure.subplots(len(rows), 1, squeeze=False, sharey=True)[:, 0], rows, strict=True):
        _draw_row(axes, {name: values[name] for name in row}, methods, colours)
        axes.set_xlim(-0.5, max(len(each) for each in rows) - 0.5)
        axes.set_ylabel(TITLES[metric])
    handles = [Patch(facecolor=colours[name], edgecolor=INK, linewidth=0.6, label=name) for name in methods]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(6, len(methods)))
    return figure


def draw_scatter(material: Material) -> Figure | None:
    """Draw the Dice of the report's method against each other method, pair by pair.

    Args:
        material: What is known, with an evaluation.

    Returns:
        The figure; None where there is nothing to compare.
    """
    own = material.scores(material.method)
    names = [*(name for name in material.methods if name == IDENTITY), *material.other_methods]
    both = {name: _both_dice(material.scores(name), own) for name in names}
    both = {name: pairs for name, pairs in both.items() if len(pairs)}
    if not both:
        return None
    colours = method_colours(material.methods, material.method, IDENTITY)
    columns = min(SCATTERS_PER_ROW, len(both))
    rows = -(-len(both) // columns)
    width = _WIDTH / SCATTERS_PER_ROW
    figure = new_figure(width * columns + 0.4, (width + 0.3) * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    lowest = min(float(pairs.min()) for pairs in both.values())
    limits = (max(0.0, np.floor(lowest * 10) / 10), 1.0)
    for axes, (name, pairs) in zip(panels.flat, both.items(), strict=False):
        axes.plot(limits, limits, color=INK, linewidth=0.8)
        axes.plot(pairs[:, 0], pairs[:, 1], "o", color=colours[name], markersize=3.5, alpha=0.85, markeredgewidth=0)
        axes.set(xlim=limits, ylim=limits, aspect="equal")
        axes.set_xlabel(name)
    for axes in panels[:, 0]:
        axes.set_ylabel(str(material.method))
    for axes in panels.flat[len(both) :]:
        axes.set_axis_off()
    return figure


def draw_strata(strata: Sequence[Stratum], names: Sequence[str], metric: str, material: Material) -> Figure:
    """Draw the mean of each method over easy to hard thirds.

    Args:
        strata: The thirds of one criterion.
        names: Their names, easy first.
        metric: Attribute of `Stratum`.
        material: What is known, with an evaluation.
    """
    figure = new_figure(6.5, 2.8)
    axes = figure.subplots()
    methods = list(dict.fromkeys(stratum.method for stratum in strata))
    colours = method_colours(methods, material.method, IDENTITY)
    for index, method in enumerate(methods):
        known = [
            (names.index(stratum.name), statistic)
            for stratum in strata
            if stratum.method == method and (statistic := getattr(stratum, metric)) is not None
        ]
        if known:
            place = np.array([third for third, _ in known]) + 0.08 * (index - (len(methods) - 1) / 2)
            means, stds = ([getattr(each, part) for _, each in known] for part in ("mean", "std"))
            axes.errorbar(place, means, yerr=stds, label=method, color=colours[method], **_BARS)
    axes.set_xticks(range(len(names)), names)
    axes.grid(visible=False, axis="x")
    label_axes(axes, "", "", TITLES[metric])
    figure.legend(loc="outside right upper")
    return figure


def _values(material: Material, metric: str) -> Values:
    found: dict[str, dict[str, list[float]]] = {}
    for score in material.evaluation.pairs if material.evaluation else ():
        for label in score.labels:
            value = getattr(label, metric)
            if value is not None:
                found.setdefault(label.name, {}).setdefault(score.method, []).append(value)
    return found


def _draw_row(axes: Axes, values: Values, methods: Sequence[str], colours: Mapping[str, str]) -> None:
    width = 0.8 / len(methods)
    for place, (_, by_method) in enumerate(values.items()):
        if place:
            axes.axvline(place - 0.5, color=FAINT, linewidth=0.6)
        for index, method in enumerate(methods):
            if method in by_method:
                at = place + (index - (len(methods) - 1) / 2) * width
                axes.boxplot(
                    [by_method[method]],
                    positions=[at],
                    widths=0.8 * width,
                    manage_ticks=False,
                    **box_look(colours[method]),
                )
    axes.set_xticks(range(len(values)), list(values))
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")


def _both_dice(method: Mapping[str, PairScores], own: Mapping[str, PairScores]) -> np.ndarray:
    """Dice of both methods by pair, (N, 2)."""
    found = [(method[pair].dice, own[pair].dice) for pair in method if pair in own]
    return np.array([(a, b) for a, b in found if a is not None and b is not None], dtype=np.float64).reshape(-1, 2)
