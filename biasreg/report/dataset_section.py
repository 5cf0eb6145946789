"""The dataset in facts, from its fingerprint."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from biasreg.core.geometry import orientation_code
from biasreg.planning.fingerprint_records import INTENSITY_PERCENTILES, CaseFingerprint, Fingerprint
from biasreg.report.page import Section, render
from biasreg.report.plotting import COLOURS, INK, FigureShelf, label_axes, new_figure

LOGARITHMIC_RATIO = 100.0
"""Values that differ by more than this factor are shown on a logarithmic axis."""
PLAIN = FuncFormatter(lambda value, _: f"{value:,.6g}")  # the usual one writes powers as formulas
_AXES = ("left–right", "back–front", "foot–head")


def dataset_section(fingerprint: Fingerprint, names: dict[int, str], shelf: FigureShelf) -> Section:
    """Describe the dataset.

    Args:
        fingerprint: Its facts.
        names: Name of each label value.
        shelf: Takes the figures.
    """
    cases = fingerprint.cases
    facts = {
        "Training cases": str(len(cases)),
        "Subjects": str(len({case.subject for case in cases})),
        "Modality": ", ".join(sorted({case.modality for case in cases})),
        "Cases with labels": str(sum(case.label_volumes_mm3 is not None for case in cases)),
        "Cases with landmarks": str(sum(case.landmarks is not None for case in cases)),
        "Voxel size, mm": _triple([case.world_spacing for case in cases]),
        "Field of view, mm": _triple([case.field_of_view_mm for case in cases]),
        "Axes": ", ".join(sorted({orientation_code(case.geometry) for case in cases})),
        "Reference case": fingerprint.reference_case,
    }
    caption = (
        "Voxel sizes and fields of view along the world's axes; intensities inside the foreground, one line per case "
        f"from its {INTENSITY_PERCENTILES[0]} to its {INTENSITY_PERCENTILES[-1]} percentile with a dot at the median, "
        "by rising median; volumes of the labels. Boxes hold the middle half of the cases, whiskers reach 1.5 times as "
        "far, and points are cases beyond."
    )
    figure = shelf.show(_draw(cases, names), "dataset", caption, minimum_width=760)
    labels = _label_rows(cases, names)
    return Section("dataset", "Dataset", render("dataset.html.j2", facts=facts, labels=labels, figure=figure))


def _triple(values: Sequence[Sequence[float]]) -> str:
    """Median along each axis."""
    return " × ".join(f"{value:.3g}" for value in np.median(np.array(values), axis=0))


def _volumes(cases: Sequence[CaseFingerprint]) -> dict[int, list[float]]:
    """Volumes in mL by label value, over the cases that show it."""
    found: dict[int, list[float]] = {}
    for case in cases:
        for value, volume in (case.label_volumes_mm3 or {}).items():
            found.setdefault(int(value), []).append(volume / 1000)
    return dict(sorted(found.items()))


def _label_rows(cases: Sequence[CaseFingerprint], names: dict[int, str]) -> list[tuple[str, int, float, float, float]]:
    return [
        (names.get(value, str(value)), len(volumes), float(np.median(volumes)), min(volumes), max(volumes))
        for value, volumes in _volumes(cases).items()
    ]


def _draw(cases: Sequence[CaseFingerprint], names: dict[int, str]) -> Figure:
    volumes = _volumes(cases)
    channels = len(cases[0].channels) if cases else 0
    figure = new_figure(9.0, 2.4 * (1 + (channels + bool(volumes) + 1) // 2))
    grid = figure.subplots(1 + (channels + bool(volumes) + 1) // 2, 2, squeeze=False).flat
    panels = list(grid)
    _draw_boxes(panels[0], [case.world_spacing for case in cases], "Voxel size", "mm")
    _draw_boxes(panels[1], [case.field_of_view_mm for case in cases], "Field of view", "mm")
    for channel in range(channels):
        _draw_intensities(panels[2 + channel], cases, channel, channels)
    if volumes:
        _draw_volumes(panels[2 + channels], volumes, names)
    for axes in panels[2 + channels + bool(volumes) :]:
        axes.set_axis_off()
    return figure


def _draw_boxes(axes: Axes, values: Sequence[Sequence[float]], title: str, unit: str) -> None:
    table = np.array(values)
    axes.boxplot(list(table.T), widths=0.55, **box_look(COLOURS[1]))
    axes.set_xticks(range(1, 4), _AXES)
    if table.min() == table.max():
        axes.set_ylim(0, 2 * table.max())
    axes.grid(visible=False, axis="x")
    label_axes(axes, title, "", unit)


def _draw_intensities(axes: Axes, cases: Sequence[CaseFingerprint], channel: int, channels: int) -> None:
    statistics = sorted((case.channels[channel] for case in cases), key=lambda each: each.percentiles[2])
    lower, middle, upper = (np.array([each.percentiles[index] for each in statistics]) for index in (0, 2, -1))
    place = np.arange(len(statistics))
    axes.vlines(place, lower, upper, colors=COLOURS[1], linewidth=0.9)
    axes.plot(place, middle, ".", color=INK, markersize=2.5)
    if upper.max() > LOGARITHMIC_RATIO * max(1e-6, float(np.median(upper))):
        if lower.min() > 0:
            axes.set_yscale("log")
        else:
            axes.set_yscale("symlog", linthresh=max(1.0, float(np.median(np.abs(upper)))))
        axes.yaxis.set_major_formatter(PLAIN)
    axes.grid(visible=False, axis="x")
    label_axes(axes, "Intensities" + (f", channel {channel}" if channels > 1 else ""), "cases")


def _draw_volumes(axes: Axes, volumes: dict[int, list[float]], names: dict[int, str]) -> None:
    axes.boxplot(list(volumes.values()), widths=0.55, **box_look(COLOURS[2]))
    labels = [names.get(value, str(value)) for value in volumes]
    many = len(labels) > 6
    axes.set_xticks(range(1, len(labels) + 1), labels, rotation=90 if many else 0, fontsize=6 if many else 8)
    flat = [value for each in volumes.values() for value in each if value > 0]
    if flat and max(flat) > LOGARITHMIC_RATIO * min(flat):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(PLAIN)
    axes.grid(visible=False, axis="x")
    label_axes(axes, "Volume of labels", "", "mL")


def box_look(colour: str) -> dict[str, Any]:
    """How a box plot looks: a box of one colour whose lines are ink."""
    line = {"color": INK, "linewidth": 0.8}
    return {
        "patch_artist": True,
        "boxprops": {"facecolor": colour, "edgecolor": INK, "linewidth": 0.6, "alpha": 0.85},
        "medianprops": {"color": INK, "linewidth": 1.4},
        "whiskerprops": line,
        "capprops": line,
        "flierprops": {"marker": ".", "markersize": 3, "markerfacecolor": colour, "markeredgecolor": colour},
    }
