"""An evaluation as text: the tables that are printed and written to `summary.txt`."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from biasreg.evaluation.comparison import FEW_IMAGES, METRICS, MIN_PAIRS
from biasreg.evaluation.records import (
    IDENTITY,
    Comparison,
    Evaluation,
    Failure,
    LabelSummary,
    MethodSummary,
    Statistic,
    Stratum,
)
from biasreg.evaluation.stratification import THIRDS

TITLES = {"dice": "Dice", "hd95_mm": "HD95 mm", "tre_mm": "TRE mm", "folding_percent": "folding %"}
DIGITS = {"dice": 3, "hd95_mm": 2, "tre_mm": 2, "folding_percent": 3}
CRITERIA = {
    "initial_dice": ("misalignment", "identity's Dice"),
    "initial_tre_mm": ("misalignment", "identity's TRE, mm"),
    "deformation_mm": ("deformation", "{reference}'s deformation, mm"),
}


def format_table(evaluation: Evaluation) -> str:
    """Lay the evaluation out as text.

    Methods, labels, comparison of the methods, thirds of the pairs, worst pairs, and what could not be measured.
    Columns of metrics that no method has (landmarks, seconds) are left out, and so are tables without rows. A cell
    reads mean ± standard deviation over pairs; where another method's is over more pairs, their numbers follow.

    Args:
        evaluation: What to lay out.
    """
    parts = [_align(_method_rows(evaluation.methods)), _align(_label_rows(evaluation.methods))]
    parts += [_comparison_table(evaluation), *_strata_tables(evaluation), _worst_table(evaluation)]
    remarks = [*_strata_remarks(evaluation), *_unmeasured_remarks(evaluation), *_failure_remarks(evaluation.failures)]
    parts.append("".join(f"{remark}\n" for remark in remarks))
    return "\n".join(part for part in parts if part)


def _method_rows(methods: Sequence[MethodSummary]) -> list[list[str]]:
    columns: list[tuple[str, int, Callable[[MethodSummary], Statistic | None]]] = [
        ("Dice", 3, lambda method: method.dice),
        ("HD95 mm", 2, lambda method: method.hd95_mm),
        ("TRE mm", 2, lambda method: method.tre_mm),
        ("folding %", 3, lambda method: method.folding_percent),
        ("SD log J", 3, lambda method: method.log_jacobian_std),
        ("s/pair", 1, lambda method: method.seconds),
    ]
    kept = [column for column in columns if any(column[2](method) for method in methods)]
    rows = [["method", "pairs", *(title for title, _, _ in kept)]]
    columns_of_cells = [_comparable([get(method) for method in methods], digits) for _, digits, get in kept]
    for index, method in enumerate(methods):
        rows.append([method.method, str(method.num_pairs), *(cells[index] for cells in columns_of_cells)])
    return rows


def _comparable(statistics: Sequence[Statistic | None], digits: int) -> list[str]:
    """Write the means of the methods; one over fewer pairs than another says so."""
    most = max((statistic.count for statistic in statistics if statistic), default=0)
    return [
        _cell(each, digits) + (f" ({each.count} of {most})" if each and each.count < most else "")
        for each in statistics
    ]


def _label_rows(methods: Sequence[MethodSummary]) -> list[list[str]]:
    titles = [f"{metric} {method.method}" for metric in ("Dice", "HD95 mm") for method in methods]
    rows = [["label", "pairs", *titles]]
    by_label: dict[tuple[int, str], dict[str, LabelSummary]] = {}
    for method in methods:
        for label in method.labels:
            by_label.setdefault((label.value, label.name), {})[method.method] = label
    for (value, name), found in sorted(by_label.items()):
        summaries = [found.get(method.method) for method in methods]
        pairs = max((label.dice.count for label in summaries if label and label.dice), default=0)
        dice = _comparable([label.dice if label else None for label in summaries], 3)
        distance = _comparable([label.hd95_mm if label else None for label in summaries], 2)
        rows.append([name if name == str(value) else f"{value} {name}", str(pairs), *dice, *distance])
    return rows


def _cell(statistic: Statistic | None, digits: int) -> str:
    if statistic is None:
        return "–"
    mean = f"{statistic.mean:.{digits}f}"
    return mean if statistic.count == 1 else f"{mean} ± {statistic.std:.{digits}f}"


def _align(rows: Sequence[Sequence[str]], title: str = "") -> str:
    """Align the columns below a title; nothing where there is only a head."""
    if len(rows) < 2:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join([title, *lines] if title else lines) + "\n"


def _comparison_table(evaluation: Evaluation) -> str:
    reference, comparisons = evaluation.reference_method, evaluation.comparisons
    rows = [["metric", "method", "pairs", "difference [95 %]", "better/equal/worse", "effect", "p (Holm)"]]
    for metric in METRICS:
        for comparison in (one for one in comparisons if one.metric == metric):
            counts = f"{comparison.better}/{comparison.equal}/{comparison.worse}"
            pairs, effect = str(comparison.num_pairs), f"{comparison.effect_size:+.2f}"
            cells = [pairs, _difference(comparison), counts, effect, _p_value(comparison)]
            rows.append([TITLES[metric], comparison.method, *cells])
    table = _align(
        rows, f"compared with {reference}, pair by pair (difference: method - {reference}; effect > 0: better)"
    )
    return table + _shared_images(comparisons)


def _shared_images(comparisons: Sequence[Comparison]) -> str:
    """Say what pairs that share images do to the numbers; nothing where they share none."""
    shared = max(comparisons, key=lambda one: 2 * one.num_pairs - one.num_images, default=None)
    if shared is None or shared.num_images == 2 * shared.num_pairs:
        return ""
    few = shared.num_images < FEW_IMAGES
    intervals = "allow for it, but so few images make them too narrow" if few else "allow for it"
    return (
        f"The {shared.num_pairs} pairs are made of {shared.num_images} images: p takes pairs as independent and is too "
        f"small; the intervals {intervals}.\n"
    )


def _difference(comparison: Comparison) -> str:
    digits = DIGITS[comparison.metric]
    mean = f"{comparison.mean_difference:+.{digits}f}"
    if comparison.confidence_low is None or comparison.confidence_high is None:
        return mean
    return f"{mean} [{comparison.confidence_low:+.{digits}f}, {comparison.confidence_high:+.{digits}f}]"


def _p_value(comparison: Comparison) -> str:
    if comparison.p_adjusted is None:
        return f"– ({comparison.reason})"
    return "< 0.001" if comparison.p_adjusted < 0.001 else f"{comparison.p_adjusted:.3f}"


def _strata_tables(evaluation: Evaluation) -> Iterator[str]:
    for by, (kind, source) in CRITERIA.items():
        strata = [stratum for stratum in evaluation.strata if stratum.by == by]
        names = [name for name in THIRDS if any(stratum.name == name for stratum in strata)]
        of = {(stratum.name, stratum.method): stratum for stratum in strata}
        borders = [f"{name} {_borders(of[name, IDENTITY])}" for name in names]
        title = f"by {kind} ({source.format(reference=evaluation.reference_method)}): {', '.join(borders)}"
        metrics = [name for name in ("dice", "hd95_mm", "tre_mm") if any(getattr(stratum, name) for stratum in strata)]
        rows = [["method", *(f"{TITLES[metric]} {name}" for metric in metrics for name in names)]]
        for method in dict.fromkeys(stratum.method for stratum in strata):
            cells = [(metric, of[name, method], of[name, IDENTITY].num_pairs) for metric in metrics for name in names]
            rows.append([method, *(_stratum_cell(*cell) for cell in cells)])
        yield _align(rows, title)


def _borders(stratum: Stratum) -> str:
    digits = DIGITS.get(stratum.by.removeprefix("initial_"), 2)
    return f"{stratum.lower:.{digits}f} to {stratum.upper:.{digits}f} ({stratum.num_pairs} pairs)"


def _stratum_cell(metric: str, stratum: Stratum, num_pairs: int) -> str:
    """Give the number of pairs too where a method lacks some of them."""
    statistic: Statistic | None = getattr(stratum, metric)
    missing = f" ({statistic.count})" if statistic is not None and statistic.count < num_pairs else ""
    return _cell(statistic, DIGITS[metric]) + missing


def _worst_table(evaluation: Evaluation) -> str:
    title = [TITLES[case.metric] for case in evaluation.worst[:1]]
    rows = [["pair", *title, "identity", "best other method", "what the scores say"]]
    for case in evaluation.worst:
        digits = DIGITS[case.metric]
        best = "–" if case.best_value is None else f"{case.best_value:.{digits}f} {case.best_method}"
        initial = "–" if case.initial is None else f"{case.initial:.{digits}f}"
        rows.append([case.pair, f"{case.value:.{digits}f}", initial, best, "; ".join(case.reasons) or "–"])
    return _align(rows, f"worst pairs of {evaluation.reference_method}, worst first")


def _strata_remarks(evaluation: Evaluation) -> Iterator[str]:
    count = sum(score.method == IDENTITY for score in evaluation.pairs)
    if 0 < count < MIN_PAIRS:
        yield f"no thirds by misalignment or deformation: {count} pair(s), fewer than {MIN_PAIRS}"


def _unmeasured_remarks(evaluation: Evaluation) -> Iterable[str]:
    for method in evaluation.methods:
        if method.unmeasured_hd95:
            yield (
                f"{method.method}: {method.unmeasured_hd95} label(s) vanished in warping; they count as Dice 0 and are "
                "left out of HD95"
            )
    left_out = sum(
        label.dice is None for score in evaluation.pairs if score.method == IDENTITY for label in score.labels
    )
    if left_out:
        yield f"{left_out} label(s) are not in both label maps of their pair and not evaluated (reasons: scores.csv)"


def _failure_remarks(failures: Sequence[Failure]) -> Iterable[str]:
    for failure in failures:
        yield f"FAILED {failure.pair} ({failure.method or 'references'}): {failure.reason}"
