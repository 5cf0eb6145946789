"""Summarise scores over pairs, and write them: `summary.json` for programs, `scores.csv`, `summary.txt` for people."""

import csv
from collections.abc import Iterable, Sequence
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
from biasreg.evaluation.tables import format_table

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
