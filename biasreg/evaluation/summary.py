"""Summarise scores over pairs, and write them: `summary.json` for programs, `scores.csv`, `summary.txt` for people."""

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from biasreg.core.errors import InputError, RecordError
from biasreg.core.serialization import atomic_write, read_record, write_record
from biasreg.evaluation.comparison import compare_methods
from biasreg.evaluation.records import (
    IDENTITY,
    SCORES_SCHEMA_VERSION,
    Evaluation,
    Failure,
    LabelScore,
    LabelSummary,
    MethodSummary,
    PairScores,
    Sources,
    Statistic,
)
from biasreg.evaluation.stratification import stratify, worst_cases

SUMMARY_FILE = "summary.json"
SCORES_FILE = "scores.csv"
TABLE_FILE = "summary.txt"
WORST_COUNT = 5
CSV_COLUMNS = (
    "pair",
    "method",
    "label",
    "name",
    "dice",
    "hd95_mm",
    "reason",
    "pair_tre_mm",
    "pair_folding_percent",
    "pair_log_jacobian_std",
    "pair_learn2reg_log_jacobian_std",
    "pair_deformation_mm",
    "pair_seconds",
)


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None where there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def summarize(
    sources: Sources, scores: Sequence[PairScores], failures: Sequence[Failure], reference_method: str | None = None
) -> Evaluation:
    """Put scores and failures together with one summary per method, and compare the methods.

    Args:
        sources: What was evaluated on what; methods are in its order, after identity.
        scores: Of all pairs under all methods.
        failures: Pairs that could not be evaluated.
        reference_method: The method that the others are compared with; None takes the first one.
    """
    reference = next(iter(sources.predictions)) if reference_method is None else reference_method
    summaries = tuple(
        _summarize_method(method, [score for score in scores if score.method == method])
        for method in (IDENTITY, *sources.predictions)
    )
    order = [summary.method for summary in summaries]
    ordered = sorted(scores, key=lambda score: order.index(score.method))  # a first pair may lack the first method
    return Evaluation(
        schema_version=SCORES_SCHEMA_VERSION,
        sources=sources,
        methods=summaries,
        pairs=tuple(scores),
        failures=tuple(failures),
        reference_method=reference,
        comparisons=compare_methods(ordered, reference),
        strata=stratify(ordered, reference),
        worst=worst_cases(ordered, reference, WORST_COUNT),
    )


def check_replaceable(folder: Path, sources: Sources) -> None:
    """Refuse a folder whose results would be lost: those of another evaluation, or files of something else.

    Args:
        folder: Where the evaluation is to be written.
        sources: What is to be evaluated. It replaces an evaluation on the same references of the same folders, or of
            some of them.

    Raises:
        InputError: A file is there and is of something else.
    """
    path = folder / SUMMARY_FILE
    advice = "choose another folder with -o, or move the file away"
    if not path.exists():
        for foreign in (folder / SCORES_FILE, folder / TABLE_FILE):
            if foreign.exists():
                raise InputError(f"{foreign} is of no evaluation, for there is no {path}; not replaced · {advice}")
        return
    try:
        earlier = read_record(path, Evaluation).sources
    except RecordError as error:
        raise InputError(
            f"{path} is no evaluation of this version of biasreg and is not replaced · {advice}"
        ) from error
    if earlier.references != sources.references or not earlier.predictions.items() <= sources.predictions.items():
        raise InputError(
            f"{path} is another evaluation and is not replaced: of {_describe(earlier)}, now of {_describe(sources)} · "
            f"{advice}"
        )


def _describe(sources: Sources) -> str:
    methods = ", ".join(f"{method} ({folder})" for method, folder in sources.predictions.items())
    return f"{methods} on {sources.references}"


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write `summary.json`, `scores.csv` and `summary.txt` into a folder, which is made where it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder / SUMMARY_FILE, evaluation)
    with atomic_write(folder / SCORES_FILE) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(CSV_COLUMNS)
        writer.writerows(_csv_rows(evaluation))
    with atomic_write(folder / TABLE_FILE) as temporary:
        temporary.write_text(format_table(evaluation), encoding="utf-8")


def format_table(evaluation: Evaluation) -> str:
    """Lay the evaluation out as text: methods, then labels, then what could not be measured.

    Columns of metrics that no method has (landmarks, seconds) are left out. A cell reads mean ± standard deviation
    over pairs.
    """
    parts = [_align(_method_rows(evaluation.methods))]
    label_rows = _label_rows(evaluation.methods)
    if len(label_rows) > 1:
        parts.append(_align(label_rows))
    remarks = [*_unmeasured_remarks(evaluation), *_failure_remarks(evaluation.failures)]
    if remarks:
        parts.append("\n".join(remarks) + "\n")
    return "\n".join(parts)


def _summarize_method(method: str, scores: Sequence[PairScores]) -> MethodSummary:
    return MethodSummary(
        method=method,
        num_pairs=len(scores),
        dice=Statistic.of(score.dice for score in scores),
        hd95_mm=Statistic.of(score.hd95_mm for score in scores),
        tre_mm=Statistic.of(score.tre_mm for score in scores),
        folding_percent=Statistic.of(score.folding_percent for score in scores),
        log_jacobian_std=Statistic.of(score.log_jacobian_std for score in scores),
        learn2reg_log_jacobian_std=Statistic.of(score.learn2reg_log_jacobian_std for score in scores),
        seconds=Statistic.of(score.seconds for score in scores),
        unmeasured_hd95=sum(_is_lost(label) for score in scores for label in score.labels),
        labels=_summarize_labels(scores),
    )


def _is_lost(label: LabelScore) -> bool:
    return label.dice is not None and label.hd95_mm is None


def _summarize_labels(scores: Sequence[PairScores]) -> tuple[LabelSummary, ...]:
    by_label: dict[tuple[int, str], list[LabelScore]] = {}
    for score in scores:
        for label in score.labels:
            by_label.setdefault((label.value, label.name), []).append(label)
    return tuple(
        LabelSummary(
            value, name, Statistic.of(label.dice for label in found), Statistic.of(label.hd95_mm for label in found)
        )
        for (value, name), found in sorted(by_label.items())
    )


def _csv_rows(evaluation: Evaluation) -> Iterable[list[object]]:
    """One row per pair, method and label; a pair without labels has one row, with the label's columns empty."""
    for score in evaluation.pairs:
        of_pair = [
            score.tre_mm,
            score.folding_percent,
            score.log_jacobian_std,
            score.learn2reg_log_jacobian_std,
            score.deformation_mm,
            score.seconds,
        ]
        for label in score.labels:
            of_label = [label.value, label.name, label.dice, label.hd95_mm, label.reason]
            yield [score.pair, score.method, *of_label, *of_pair]
        if not score.labels:
            yield [score.pair, score.method, *[None] * 5, *of_pair]


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
    for method in methods:
        cells = [_cell(get(method), digits) for _, digits, get in kept]
        rows.append([method.method, str(method.num_pairs), *cells])
    return rows


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
        dice = [_cell(label.dice if label else None, 3) for label in summaries]
        distance = [_cell(label.hd95_mm if label else None, 2) for label in summaries]
        rows.append([name if name == str(value) else f"{value} {name}", str(pairs), *dice, *distance])
    return rows


def _cell(statistic: Statistic | None, digits: int) -> str:
    if statistic is None:
        return "–"
    mean = f"{statistic.mean:.{digits}f}"
    return mean if statistic.count == 1 else f"{mean} ± {statistic.std:.{digits}f}"


def _align(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines) + "\n"


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
