"""Which of a dataset's trained models to use: the validation scores of their folds, side by side on the same pairs."""

import math
import shlex
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev

from biasreg.core.errors import DatasetError, ModelNotFoundError
from biasreg.core.paths import Roots, find_dataset
from biasreg.core.serialization import write_record
from biasreg.planning.files import SPLITS_FILE, read_folds
from biasreg.planning.splits import DEFAULT_FOLDS
from biasreg.training.model_comparison import leaking, pooled, uncertain, unfair
from biasreg.training.trained_models import Model, PairKey, TrainedFold, read_models
from biasreg.training.validation import ValidationResult

BEST_FILE = "best_configuration.json"


@dataclass(frozen=True)
class ModelSummary:
    """A model in the table.

    Attributes:
        plans_name: Name of its plans.
        configuration_name: Name of its configuration.
        ablation: Whether it goes without a part of the method, and so is not recommended.
        folds: Folds that count: finished, and validated on cases that were held back.
        planned_folds: Number of folds of the dataset.
        left_out: Why other folds do not count, or are not there, a sentence each.
        epochs: Epochs of the folds that count, the most.
        pairs: Number of their validation pairs.
        dice_before: Mean Dice of these before registration; None without labels.
        dice_after: The same after registration.
        dice_deviation: Standard deviation of the latter over the pairs; None for fewer than two.
        folding_percent: Mean share of folding voxels, in percent.
        score: Score over its own pairs; None without any, or if a network's output was not finite.
        compared_score: Score over the pairs that all compared models have; None if it was not compared.
    """

    plans_name: str
    configuration_name: str
    ablation: bool
    folds: tuple[str, ...]
    planned_folds: int
    left_out: tuple[str, ...]
    epochs: int
    pairs: int
    dice_before: float | None
    dice_after: float | None
    dice_deviation: float | None
    folding_percent: float | None
    score: float | None
    compared_score: float | None


@dataclass(frozen=True)
class BestConfiguration:
    """What to predict with, and why.

    Attributes:
        dataset_name: Full dataset name.
        plans_name: Plans of the recommended model.
        configuration_name: Its configuration.
        folds: Its folds that count.
        compared_pairs: Number of pairs that the models were compared on.
        fair: Whether the scores of the compared models are about the same pairs, labels and grid.
        notices: What to know before trusting the choice.
        models: All models, the best first.
    """

    dataset_name: str
    plans_name: str
    configuration_name: str
    folds: tuple[str, ...]
    compared_pairs: int
    fair: bool
    notices: tuple[str, ...]
    models: tuple[ModelSummary, ...]


def find_best_configuration(roots: Roots, dataset: str, *, ablations: bool = False) -> tuple[BestConfiguration, Path]:
    """Compare all trained models of a dataset by their validation scores, and write down which one to use.

    Args:
        roots: Root folders; of the preprocessed one only the number of folds is taken, if it is there.
        dataset: Dataset id or name.
        ablations: Recommend models without a part of the method too.

    Returns:
        The choice, and its file `best_configuration.json` among the results of the dataset.

    Raises:
        ModelNotFoundError: If no model has a fold that is finished and validated.
    """
    try:
        folder = find_dataset(dataset, roots.results)
    except DatasetError as error:
        raise ModelNotFoundError(f"{error} · train a fold first, with `biasreg_train {dataset} 0`") from error
    splits = roots.preprocessed / folder.name / SPLITS_FILE
    planned = len(read_folds(splits)) if splits.is_file() else DEFAULT_FOLDS
    unreadable: list[str] = []
    models = read_models(folder, unreadable)
    choice = choose_model(folder.name, models, planned, ablations=ablations, notices=unreadable)
    write_record(folder / BEST_FILE, choice)
    return choice, folder / BEST_FILE


def choose_model(
    dataset_name: str, models: Sequence[Model], planned_folds: int, *, ablations: bool, notices: Iterable[str] = ()
) -> BestConfiguration:
    """Choose the model with the best score over the pairs that all of them were validated on.

    Args:
        dataset_name: Full dataset name.
        models: The trained models.
        planned_folds: Number of folds of the dataset.
        ablations: Recommend models without a part of the method too.
        notices: What is known already.

    Returns:
        The choice.

    Raises:
        ModelNotFoundError: If no model may be recommended.
    """
    compared = [model for model in models if model.pairs and (ablations or not model.is_ablation)]
    if not compared:
        raise _nothing_to_choose(dataset_name, models, notices)
    common = set.intersection(*(set(model.pairs) for model in compared))
    keys = {model.name: common or set(model.pairs) for model in compared}
    ranked = sorted(compared, key=lambda model: _rank(pooled(model, keys[model.name])), reverse=True)
    faults = unfair(compared, common)
    best = ranked[0]
    found = [*notices, *uncertain(ranked, common), *leaking(best), *faults]
    others = [model for model in models if model not in compared]
    return BestConfiguration(
        dataset_name=dataset_name,
        plans_name=best.plans_name,
        configuration_name=best.configuration_name,
        folds=tuple(fold.name for fold in best.folds if fold.counts),
        compared_pairs=len(common),
        fair=not faults,
        notices=tuple(found),
        models=tuple(_summary(model, planned_folds, keys.get(model.name)) for model in [*ranked, *others]),
    )


def predict_command(choice: BestConfiguration, results: Path | None = None) -> str:
    """Write the command that predicts with the recommended model, as a user has to type it.

    Args:
        choice: The choice.
        results: Root of the results, if it was given by its flag.

    Returns:
        The command, for pairs in `pairs/`.
    """
    model = ["-d", choice.dataset_name, "-p", choice.plans_name, "--configuration", choice.configuration_name]
    root = [] if results is None else ["--results", str(results)]
    return shlex.join(["biasreg_predict", "-i", "pairs/", "-o", "out/", *model, "-f", *choice.folds, *root])


def format_models(choice: BestConfiguration) -> str:
    """Lay out the models as a table, the best first, with the folds that do not count below it.

    Args:
        choice: The choice.

    Returns:
        Several lines.
    """
    header = ("model", "folds", "epochs", "pairs", "Dice before", "Dice after", "folding %", "score", "common pairs")
    rows = [header, *(_row(model) for model in choice.models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for model in choice.models:
        lines += [f"{model.plans_name}__{model.configuration_name}: {reason}" for reason in model.left_out]
        if model.ablation and model.compared_score is None:
            lines.append(f"{model.plans_name}__{model.configuration_name}: an ablation, not recommended")
    return "\n".join(lines)


def _row(model: ModelSummary) -> tuple[str, ...]:
    spread = "" if model.dice_deviation is None else f" ± {model.dice_deviation:.4f}"
    folding = "–" if model.folding_percent is None else f"{model.folding_percent:.3f}"
    return (
        f"{model.plans_name}__{model.configuration_name}",
        f"{len(model.folds)} of {model.planned_folds}",
        str(model.epochs),
        str(model.pairs),
        _number(model.dice_before),
        _number(model.dice_after) + spread,
        folding,
        _number(model.score),
        _number(model.compared_score),
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _rank(result: ValidationResult) -> tuple[bool, float]:
    """Order scores: by Dice before any that is by similarity alone, which is of another scale."""
    return result.dice_after is not None, result.score


def _summary(model: Model, planned: int, keys: Set[PairKey] | None) -> ModelSummary:
    own = pooled(model, set(model.pairs))
    dice = [pair.dice_after for pair in own.pairs if pair.dice_after is not None]
    counting = [fold for fold in model.folds if fold.counts]
    return ModelSummary(
        plans_name=model.plans_name,
        configuration_name=model.configuration_name,
        ablation=model.is_ablation,
        folds=tuple(fold.name for fold in counting),
        planned_folds=planned,
        left_out=tuple(_left_out(model, planned)),
        epochs=max((fold.epochs_done for fold in counting), default=0),
        pairs=len(own.pairs),
        dice_before=own.dice_before,
        dice_after=own.dice_after,
        dice_deviation=stdev(dice) if len(dice) > 1 else None,
        folding_percent=None if own.folding_fraction is None else 100 * own.folding_fraction,
        score=_finite(own.score),
        compared_score=None if keys is None else _finite(pooled(model, keys).score),
    )


def _finite(score: float) -> float | None:
    return score if math.isfinite(score) else None


def _left_out(model: Model, planned: int) -> list[str]:
    """Say why folds do not count, and which are not there."""
    reasons = [f"fold {fold.name} {_why_not(fold)}" for fold in model.folds if not fold.counts]
    known = {fold.name for fold in model.folds}
    missing = [str(number) for number in range(planned) if str(number) not in known]
    return reasons + ([f"not trained: fold {', '.join(missing)}"] if missing else [])


def _why_not(fold: TrainedFold) -> str:
    if fold.name == "all":
        return "has seen every case, so that its scores say nothing of new ones"
    if fold.epochs_done < fold.epochs:
        return f"has come to {fold.epochs_done} of {fold.epochs} epochs (biasreg_train … {fold.name} --c goes on)"
    return "was never validated"


def _nothing_to_choose(dataset_name: str, models: Sequence[Model], notices: Iterable[str]) -> ModelNotFoundError:
    reasons = [f"\n  {notice}" for notice in notices]
    reasons += [f"\n  {model.name}: {reason}" for model in models for reason in _left_out(model, 0)]
    ablations = [
        f"\n  {model.name}: an ablation (--ablations takes these too)" for model in models if model.is_ablation
    ]
    return ModelNotFoundError(
        f"no model of {dataset_name} has a fold that is trained to its end and validated on held-out cases · train one "
        f"with `biasreg_train {dataset_name} 0`{''.join([*reasons, *ablations])}"
    )
