"""Evaluate displacement fields, by whatever tool they were made, against reference labels and landmarks.

Every field is applied to the *moving reference labels at native resolution*, so that all methods are measured by the
same code; no registration at all (`identity`) is always measured beside them.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from biasreg.core.errors import BiasregError, DatasetError
from biasreg.core.pairs import PairFiles, read_pairs
from biasreg.core.parallel import explained_deaths
from biasreg.core.paths import check_writable
from biasreg.evaluation.metrics import (
    FieldMetrics,
    deformation_mm,
    dice_per_label,
    field_metrics,
    hd95_per_label,
    target_registration_error,
)
from biasreg.evaluation.records import (
    DEFAULT_METHOD,
    IDENTITY,
    Evaluation,
    Failure,
    LabelScore,
    LandmarkScore,
    PairScores,
    Sources,
)
from biasreg.evaluation.reference_data import References, read_prediction, read_references, read_seconds
from biasreg.evaluation.summary import check_replaceable, mean_of_known, summarize, write_evaluation
from biasreg.spatial.native import warp_label_map

logger = logging.getLogger(__name__)

# x → x has det J = 1 everywhere: nothing folds, and log det J = 0 does not vary.
IDENTITY_FIELD = FieldMetrics(folding_percent=0.0, log_jacobian_std=0.0, learn2reg_log_jacobian_std=0.0)


@dataclass(frozen=True)
class PairTask:
    """What one worker needs to evaluate one pair.

    Attributes:
        pair: The reference files.
        methods: Folder of predictions by method name.
        label_names: Name by label value, of the labels to evaluate; None evaluates all that occur.
    """

    pair: PairFiles
    methods: dict[str, Path]
    label_names: dict[int, str] | None


@dataclass(frozen=True)
class PairResult:
    """Scores of one pair under all methods that have a usable prediction, and failures of the others."""

    scores: tuple[PairScores, ...]
    failures: tuple[Failure, ...]


def evaluate_predictions(
    predictions: Path | Mapping[str, Path],
    references: Path,
    labels: Mapping[str, int] | None = None,
    output: Path | None = None,
    executor: Executor | None = None,
    reference_method: str | None = None,
) -> Evaluation:
    """Measure the fields `<pair>_warp.nii.gz` of one or more folders on all reference pairs.

    Args:
        predictions: Folder of predictions, or such a folder by method name.
        references: Pairs with their label maps and landmarks, in any form that `read_pairs` takes.
        labels: Value by name of the labels to evaluate (background 0 is left out); None takes every value that occurs.
        output: Folder for `summary.json`, `scores.csv` and `summary.txt`; None writes nothing, and so does an
            evaluation in which no field could be measured.
        executor: Runs the pairs, for example in processes; None runs them one after the other.
        reference_method: The method that the others are compared with, pair by pair; None takes the first one.

    Returns:
        Scores per method, pair and label. A pair that could not be evaluated stands in `failures` and does not stop
        the others.

    Raises:
        DatasetError: A folder of predictions does not exist, a method's name is reserved, the reference method is none
            of them, or there are no complete reference pairs.
        InputError: The output folder cannot be written to, or holds the results of another evaluation.
        BiasregError: A worker died.
    """
    methods = {DEFAULT_METHOD: predictions} if isinstance(predictions, Path) else dict(predictions)
    _check_methods(methods, reference_method)
    sources = Sources(str(references.resolve()), {name: str(folder.resolve()) for name, folder in methods.items()})
    if output is not None:
        check_writable(output, "choose another folder with -o")
        check_replaceable(output, sources)
    names = None if labels is None else {value: name for name, value in labels.items() if value != 0}
    found = read_pairs(references)
    tasks = [PairTask(pair, methods, names) for pair in found.pairs]
    scores: list[PairScores] = []
    failures = [Failure(name, None, fault) for name, fault in found.faults.items()]
    for number, (task, result) in enumerate(zip(tasks, _results(tasks, executor), strict=True), start=1):
        logger.info("pair %d of %d, %s: %s", number, len(tasks), task.pair.identifier, _in_one_line(result))
        scores.extend(result.scores)
        failures.extend(result.failures)
    evaluation = summarize(sources, scores, failures, reference_method)
    if output is not None and evaluation.is_empty:
        logger.warning("no field could be measured; nothing is written to %s", output)
    elif output is not None:
        write_evaluation(evaluation, output)
    return evaluation


def evaluate_pair(task: PairTask) -> PairResult:
    """Measure one pair under identity and every method; what a user can cause becomes a `Failure`, not an error."""
    identifier = task.pair.identifier
    try:
        references = read_references(task.pair)
        names = _label_names(references, task.label_names)
        scores = [_score(references, names, IDENTITY, None)]
    except BiasregError as error:
        return PairResult((), (Failure(identifier, None, str(error)),))
    failures = []
    for method, folder in task.methods.items():
        try:
            displacement = read_prediction(references, folder)
            scores.append(_score(references, names, method, displacement, read_seconds(folder, identifier)))
        except BiasregError as error:
            failures.append(Failure(identifier, method, str(error)))
    return PairResult(tuple(scores), tuple(failures))


def _results(tasks: Sequence[PairTask], executor: Executor | None) -> Iterator[PairResult]:
    """Evaluate pairs in their order, each given as soon as those before it are done."""
    if executor is None:
        yield from map(evaluate_pair, tasks)
        return
    with explained_deaths():
        yield from executor.map(evaluate_pair, tasks)


def _check_methods(methods: Mapping[str, Path], reference_method: str | None) -> None:
    if IDENTITY in methods:
        raise DatasetError(f"a method cannot be called '{IDENTITY}': that row is always there; choose another name")
    if reference_method is not None and reference_method not in methods:
        raise DatasetError(
            f"there is no method '{reference_method}' to compare with; choose one of {', '.join(methods)}"
        )
    for method, folder in methods.items():
        if not folder.is_dir():
            raise DatasetError(
                f"predictions of method '{method}': no folder {folder}; give the folder of *_warp.nii.gz"
            )


def _label_names(references: References, given: dict[int, str] | None) -> dict[int, str]:
    """Name by value of the labels to evaluate for this pair, by ascending value."""
    if references.labels is None:
        return {}
    occurring = sorted({int(value) for image in references.labels for value in np.unique(image.array)} - {0})
    if given is None:
        return {value: str(value) for value in occurring}
    unknown = [value for value in occurring if value not in given]
    if unknown:
        logger.warning("pair %s: label values %s have no name; not evaluated", references.pair.identifier, unknown)
    return dict(sorted(given.items()))


def _score(
    references: References,
    names: dict[int, str],
    method: str,
    displacement: NDArray | None,
    seconds: float | None = None,
) -> PairScores:
    """Measure one method on one pair; a displacement of None is the identity in world coordinates."""
    field = IDENTITY_FIELD if displacement is None else field_metrics(displacement, references.geometry)
    labels = tuple(_score_labels(references, names, displacement))
    return PairScores(
        pair=references.pair.identifier,
        method=method,
        moving_image=references.images[0],
        fixed_image=references.images[1],
        labels=labels,
        dice=mean_of_known(label.dice for label in labels),
        hd95_mm=mean_of_known(label.hd95_mm for label in labels),
        landmarks=_score_landmarks(references, displacement),
        folding_percent=field.folding_percent,
        log_jacobian_std=field.log_jacobian_std,
        learn2reg_log_jacobian_std=field.learn2reg_log_jacobian_std,
        deformation_mm=0.0 if displacement is None else deformation_mm(displacement, _evaluated(references, labels)),
        seconds=seconds,
    )


def _evaluated(references: References, labels: Sequence[LabelScore]) -> NDArray[np.bool_] | None:
    """Where the fixed image has a label that is evaluated; None without label maps."""
    if references.labels is None:
        return None
    return np.isin(references.labels[1].array, [label.value for label in labels if label.dice is not None])


def _score_labels(references: References, names: dict[int, str], displacement: NDArray | None) -> Iterator[LabelScore]:
    if references.labels is None:
        return
    moving, fixed = references.labels
    in_moving, in_fixed = set(np.unique(moving.array).tolist()), set(np.unique(fixed.array).tolist())
    evaluated = [value for value in names if value in in_moving and value in in_fixed]
    warped = warp_label_map(moving, displacement, references.geometry)
    dice = dice_per_label(warped, fixed.array, evaluated)
    distance = hd95_per_label(warped, fixed.array, references.geometry.spacing, evaluated)
    for value, name in names.items():
        reason = _why_not(value in in_moving, value in in_fixed, distance.get(value) is not None)
        yield LabelScore(value, name, dice.get(value), distance.get(value), reason)


def _why_not(in_moving: bool, in_fixed: bool, measured: bool) -> str | None:
    """Say why a label has no Dice or no Hausdorff distance; None where it has both."""
    if measured:
        return None
    if in_moving and in_fixed:
        return "nothing of the label is left after warping: no Hausdorff distance"
    if in_moving or in_fixed:
        return f"not in the {'fixed' if in_moving else 'moving'} label map"
    return "in neither label map"


def _score_landmarks(references: References, displacement: NDArray | None) -> LandmarkScore | None:
    if references.points is None:
        return None
    moving, fixed = references.points
    result = target_registration_error(fixed, moving, displacement, references.geometry)
    errors = np.array(result.errors_mm)
    return LandmarkScore(float(errors.mean()), float(errors.std()), float(errors.max()), len(errors), result.unmatched)


def _in_one_line(result: PairResult) -> str:
    scores = [
        f"{score.method} Dice {score.dice:.3f}" if score.dice is not None else f"{score.method} done"
        for score in result.scores
    ]
    return ", ".join(scores + [f"{failure.method or 'references'} FAILED" for failure in result.failures])
