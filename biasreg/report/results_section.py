"""Results: every method on every structure, against each other, on easy and hard pairs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from biasreg.evaluation.records import Comparison, Evaluation, MethodSummary, Statistic, Stratum
from biasreg.evaluation.stratification import THIRDS
from biasreg.evaluation.tables import CRITERIA, DIGITS, TITLES
from biasreg.report.material import Material
from biasreg.report.page import Section, number, render
from biasreg.report.plotting import FigureShelf
from biasreg.report.ranking import PairRow, is_ranked
from biasreg.report.result_plots import draw_boxes, draw_scatter, draw_strata


@dataclass(frozen=True)
class Column:
    """A metric of the table of methods.

    Attributes:
        title: Its heading.
        digits: Decimals.
        get: Takes it from a summary.
        better: 1 where more is better, -1 where less is, 0 where neither is.
    """

    title: str
    digits: int
    get: Callable[[MethodSummary], Statistic | None]
    better: int


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What it shows.
        value: What it is sorted by.
        best: Whether it is the best of its column.
    """

    text: str
    value: float | None = None
    best: bool = False


COLUMNS = (
    Column("Dice", 3, lambda summary: summary.dice, 1),
    Column("HD95, mm", 2, lambda summary: summary.hd95_mm, -1),
    Column("TRE, mm", 2, lambda summary: summary.tre_mm, -1),
    Column("Folding, %", 3, lambda summary: summary.folding_percent, 0),
    Column("SD log J", 3, lambda summary: summary.log_jacobian_std, 0),
    Column("Seconds", 1, lambda summary: summary.seconds, 0),
)


def results_section(material: Material, rows: Sequence[PairRow], looks: dict[str, int], shelf: FigureShelf) -> Section:
    """Show the evaluation, or what prediction itself has measured.

    Args:
        material: What is known; with an evaluation or pairs.
        rows: The pairs, worst first.
        looks: Place in the viewer of the pairs that are there.
        shelf: Takes the figures.
    """
    evaluation = material.evaluation
    if evaluation is None:
        body = render("results.html.j2", evaluation=None, rows=rows, looks=looks, ranked=is_ranked(rows))
        return Section("results", "Results", body)
    body = render(
        "results.html.j2",
        evaluation=evaluation,
        method=material.method,
        columns=[column for column in COLUMNS if _known(column, evaluation)],
        methods=list(_method_rows(evaluation)),
        figures=list(_figures(material, shelf)),
        comparisons=[_comparison_row(comparison) for comparison in evaluation.comparisons],
        reasons=list(_untested(evaluation)),
        shared=_shared_images(evaluation),
        strata=list(_strata(evaluation, material, shelf)),
        rows=rows,
        looks=looks,
        ranked=is_ranked(rows),
    )
    return Section("results", "Results", body)


def _known(column: Column, evaluation: Evaluation) -> bool:
    return any(column.get(summary) is not None for summary in evaluation.methods)


def _method_rows(evaluation: Evaluation) -> Iterator[tuple[MethodSummary, list[Cell]]]:
    columns = [column for column in COLUMNS if _known(column, evaluation)]
    best = [_best(column, evaluation) for column in columns]
    for summary in evaluation.methods:
        cells = []
        for column, top in zip(columns, best, strict=True):
            statistic = column.get(summary)
            most = _most_pairs(column, evaluation)
            text = mean_and_std(statistic, column.digits)
            if statistic is not None and statistic.count < most:
                text += f" ({statistic.count} of {most})"
            is_best = statistic is not None and statistic.count == most and round(statistic.mean, column.digits) == top
            cells.append(Cell(text, statistic.mean if statistic else None, is_best))
        yield summary, cells


def _best(column: Column, evaluation: Evaluation) -> float | None:
    """The best mean over all pairs as it is shown; None where there is no better and worse, or one method alone."""
    most = _most_pairs(column, evaluation)
    found = (column.get(summary) for summary in evaluation.methods)
    known = [statistic.mean for statistic in found if statistic is not None and statistic.count == most]
    if column.better == 0 or len(known) < 2:
        return None
    return round(max(known) if column.better > 0 else min(known), column.digits)


def _most_pairs(column: Column, evaluation: Evaluation) -> int:
    found = (column.get(summary) for summary in evaluation.methods)
    return max((statistic.count for statistic in found if statistic is not None), default=0)


def mean_and_std(statistic: Statistic | None, digits: int) -> str:
    """Write `mean ± standard deviation`, the mean alone for one pair, a dash for none."""
    if statistic is None or statistic.count == 1:
        return number(statistic.mean if statistic else None, digits)
    return f"{number(statistic.mean, digits)} ± {number(statistic.std, digits)}"


def _figures(material: Material, shelf: FigureShelf) -> Iterator[str]:
    for metric in ("dice", "hd95_mm"):
        figure = draw_boxes(material, metric)
        if figure is not None:
            caption = (
                f"{TITLES[metric]} of each structure, one box per method over all pairs (the paper's Figures 7, 9 and "
                "11). Boxes hold the middle half, whiskers reach 1.5 times as far, points are pairs beyond."
            )
            yield shelf.show(figure, f"boxes_{metric}", caption, minimum_width=760)
    figure = draw_scatter(material)
    if figure is not None:
        caption = (
            f"Dice of {material.method} against each other method, one point per pair (the paper's Figure 7b). Above "
            "the line, it is the better one."
        )
        yield shelf.show(figure, "scatter_dice", caption, minimum_width=760)


def _comparison_row(comparison: Comparison) -> tuple[Comparison, list[Cell]]:
    digits = DIGITS[comparison.metric]
    mean = _signed(comparison.mean_difference, digits)
    if comparison.confidence_low is not None and comparison.confidence_high is not None:
        mean += f" [{_signed(comparison.confidence_low, digits)}, {_signed(comparison.confidence_high, digits)}]"
    return comparison, [
        Cell(TITLES[comparison.metric]),
        Cell(str(comparison.num_pairs), comparison.num_pairs),
        Cell(mean, comparison.mean_difference),
        Cell(f"{comparison.better} / {comparison.equal} / {comparison.worse}", comparison.better),
        Cell(_signed(comparison.effect_size, 2), comparison.effect_size),
        Cell(_p_value(comparison), comparison.p_adjusted),
    ]


def _signed(value: float, digits: int) -> str:
    """Write a number with its sign, a true minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def _p_value(comparison: Comparison) -> str:
    if comparison.p_adjusted is None:
        return "–"
    return "< 0.001" if comparison.p_adjusted < 0.001 else f"{comparison.p_adjusted:.3f}"


def _untested(evaluation: Evaluation) -> Iterator[str]:
    """Say why some comparisons have no p-value."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for comparison in evaluation.comparisons:
        if comparison.p_adjusted is None and comparison.reason is not None:
            reasons.setdefault((TITLES[comparison.metric], comparison.reason), []).append(comparison.method)
    for (metric, reason), methods in reasons.items():
        yield f"No p for {metric} of {', '.join(methods)}: {reason}"


def _shared_images(evaluation: Evaluation) -> str | None:
    """Say that pairs share images, so that they are not independent."""
    most = max(evaluation.comparisons, key=lambda each: 2 * each.num_pairs - each.num_images, default=None)
    if most is None or most.num_images >= 2 * most.num_pairs:
        return None
    return (
        f"The {most.num_pairs} pairs are made of {most.num_images} images: p takes pairs as independent and is too "
        "small; the intervals allow for it."
    )


def _strata(evaluation: Evaluation, material: Material, shelf: FigureShelf) -> Iterator[dict[str, object]]:
    """Thirds of the pairs, by each criterion."""
    for by, (kind, source) in CRITERIA.items():
        strata = [stratum for stratum in evaluation.strata if stratum.by == by]
        names = [name for name in THIRDS if any(stratum.name == name for stratum in strata)]
        if not names:
            continue
        metric = "dice" if any(stratum.dice for stratum in strata) else "tre_mm"
        caption = (
            f"{TITLES[metric]} by initial {kind}" if kind == "misalignment" else f"{TITLES[metric]} by size of {kind}"
        )
        caption += f", in thirds of the pairs by {source.format(reference=evaluation.reference_method)}. Bars are ± SD."
        figure = draw_strata(strata, names, metric, material)
        yield {
            "kind": kind,
            "names": [(name, _borders(strata, name)) for name in names],
            "figure": shelf.show(figure, f"thirds_{by}", caption, minimum_width=560),
            "rows": list(_strata_rows(strata, names, metric)),
        }


def _borders(strata: Sequence[Stratum], name: str) -> str:
    first = next(stratum for stratum in strata if stratum.name == name)
    digits = DIGITS.get(first.by.removeprefix("initial_"), 2)
    return f"{first.lower:.{digits}f} to {first.upper:.{digits}f}"


def _strata_rows(strata: Sequence[Stratum], names: Sequence[str], metric: str) -> Iterator[tuple[str, list[Cell]]]:
    of = {(stratum.method, stratum.name): stratum for stratum in strata}
    for method in dict.fromkeys(stratum.method for stratum in strata):
        statistics = [getattr(of[method, name], metric) if (method, name) in of else None for name in names]
        yield (
            method,
            [
                Cell(mean_and_std(statistic, DIGITS[metric]), statistic.mean if statistic else None)
                for statistic in statistics
            ],
        )
