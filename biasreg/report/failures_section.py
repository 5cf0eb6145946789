"""The worst pairs: what they look like, and what the scores say about the cause."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.figure import Figure

from biasreg.core.errors import BiasregError
from biasreg.evaluation.figures import Panel
from biasreg.evaluation.records import WorstCase
from biasreg.evaluation.stratification import worst_cases
from biasreg.evaluation.tables import DIGITS, TITLES
from biasreg.report.material import Material
from biasreg.report.packing import window
from biasreg.report.page import Section, number, render
from biasreg.report.pictures import best_view, show_grid, show_image, show_outlines
from biasreg.report.plotting import FigureShelf, new_figure
from biasreg.report.ranking import PairRow
from biasreg.report.volumes import PairVolumes, pair_volumes, read_field, read_sources

logger = logging.getLogger(__name__)

WORST_COUNT = 8
PICTURE_COUNT = 3
_COLUMNS = ("fixed", "moving, before", "warped, after", "displacement")
_WIDTH = 9.0


@dataclass(frozen=True)
class FailureRow:
    """A bad pair.

    Attributes:
        case: What the scores say.
        value: Its metric as text.
        initial: That of no registration.
        best: The best other method's.
    """

    case: WorstCase
    value: str
    initial: str
    best: str


def failures_section(
    material: Material, rows: Sequence[PairRow], looks: dict[str, int], shelf: FigureShelf
) -> Section | str:
    """Show the worst pairs of the report's own method.

    Args:
        material: What is known.
        rows: The pairs, worst first.
        looks: Place in the viewer of the pairs that are there.
        shelf: Takes the figure.

    Returns:
        The section, or why there is none.
    """
    evaluation, method = material.evaluation, material.method
    if evaluation is None or method is None:
        return "which pairs are worst is told by an evaluation"
    cases = worst_cases(evaluation.pairs, method, WORST_COUNT)
    if not cases:
        return f"the evaluation has no pair of {method}"
    figure = _picture(cases, rows, shelf)
    title = TITLES[cases[0].metric]
    body = render(
        "failures.html.j2", rows=list(map(_row, cases)), metric=title, method=method, figure=figure, looks=looks
    )
    return Section("failures", "Worst pairs", body)


def _row(case: WorstCase) -> FailureRow:
    digits = DIGITS[case.metric]
    best = "–" if case.best_value is None else f"{number(case.best_value, digits)} {case.best_method}"
    return FailureRow(case, number(case.value, digits), number(case.initial, digits), best)


def _picture(cases: Sequence[WorstCase], rows: Sequence[PairRow], shelf: FigureShelf) -> Markup | None:
    pairs = {row.name: row.pair for row in rows if row.pair.images is not None}
    shown: list[tuple[str, PairVolumes]] = []
    for case in cases:
        if case.pair in pairs and len(shown) < PICTURE_COUNT:
            try:
                sources = read_sources(pairs[case.pair])
                field = read_field(pairs[case.pair].file("warp"), sources.fixed.geometry)
            except BiasregError as error:
                logger.info("not in the report: picture of %s: %s", case.pair, error)
                continue
            shown.append((case.pair, pair_volumes(sources, field)))
    if not shown:
        return None
    caption = (
        "The worst pairs in the slice that shows most of the labels (the paper's Figure 14). Blue: outlines in the "
        "fixed image; orange: those of the moving image, before and after registration. Right: the deformed grid over "
        "the length of the displacement, from none (dark) to the longest of the pair (bright)."
    )
    return shelf.show(_draw(shown), "worst_pairs", caption, minimum_width=760)


def _draw(shown: Sequence[tuple[str, PairVolumes]]) -> Figure:
    views = [best_view(volumes) for _, volumes in shown]
    ratios = []
    for (view, _), (_, volumes) in zip(views, shown, strict=True):
        width, height = (
            volumes.grid.shape[axis] * volumes.grid.spacing[axis] for axis in (view.horizontal, view.vertical)
        )
        ratios.append(height / width)
    figure = new_figure(_WIDTH, sum(_WIDTH / len(_COLUMNS) * ratio + 0.35 for ratio in ratios))
    grid = figure.subplots(len(shown), len(_COLUMNS), squeeze=False, gridspec_kw={"height_ratios": ratios})
    for line, (view, position), (name, volumes) in zip(grid, views, shown, strict=True):
        panels = [Panel(axes, view, position, volumes.grid.spacing) for axes in line]
        fixed, moving = window(volumes.fixed), window(volumes.moving)
        show_image(panels[0], volumes.fixed, fixed)
        show_outlines(panels[0], volumes.fixed_labels, None)
        show_image(panels[1], volumes.moving, moving)
        show_outlines(panels[1], volumes.fixed_labels, volumes.moving_labels)
        show_image(panels[2], volumes.warped, moving)
        show_outlines(panels[2], volumes.fixed_labels, volumes.warped_labels)
        show_grid(panels[3], volumes)
        for axes, column in zip(line, _COLUMNS, strict=True):
            axes.set_title(column, fontweight="normal", fontsize=8)
        line[0].set_title(f"{name}\n{view.name}, fixed", fontweight="normal", fontsize=8)
    return figure
