"""What to know before trusting a comparison of trained models."""

import math
from collections.abc import Sequence, Set
from statistics import mean, stdev

from scipy import stats

from biasreg.training.trained_models import Model, PairKey
from biasreg.training.validation import ValidationResult

CHANCE = 0.05  # that two models which are equally good are said to differ


def pooled(model: Model, keys: Set[PairKey]) -> ValidationResult:
    """Put some validation pairs of all folds of a model together.

    Args:
        model: The model.
        keys: The pairs.

    Returns:
        Their scores; epoch and what was held out are of no meaning.
    """
    return ValidationResult(0, "both", tuple(score for key, score in sorted(model.pairs.items()) if key in keys))


def unfair(models: Sequence[Model], common: Set[PairKey]) -> list[str]:
    """Say what makes the scores of the compared models no measure of the same thing.

    Args:
        models: The compared models.
        common: Pairs that all of them have.

    Returns:
        Sentences for the user.
    """
    if len(models) < 2:
        return []
    made = [model.configuration for model in models]
    found = []
    if not common:
        found.append("the models have no validation pair in common: train the same folds of each")
    if len({each.preprocessing.label_values if each.network.num_labels > 1 else () for each in made}) > 1:
        found.append("the models know different labels")
    if len({(each.preprocessing.spacing, each.preprocessing.patch_size, each.preprocessing.crop) for each in made}) > 1:
        found.append(
            "the models work on different grids, and scores on a coarse grid cannot be compared with scores on a fine "
            "one: register held-out pairs with each, and compare on the native grid with biasreg_evaluate --method"
        )
    by_similarity = all(each.network.num_labels < 2 for each in made)
    if by_similarity and len({(each.training.similarity, each.training.similarity_window_voxels) for each in made}) > 1:
        found.append("without labels the score is the similarity, and the models measure different ones")
    return [f"this comparison is not fair: {reason}" for reason in found]


def uncertain(ranked: Sequence[Model], common: Set[PairKey]) -> list[str]:
    """Say over which pairs the models were compared, and whether the two best differ by more than chance.

    Args:
        ranked: The compared models, the best first.
        common: Pairs that all of them have.

    Returns:
        Sentences for the user.
    """
    if len(ranked) < 2 or not common:
        return []
    first, second = ranked[:2]
    found = []
    if any(len(model.pairs) > len(common) for model in ranked):
        counts = ", ".join(f"{model.name} has {len(model.pairs)}" for model in ranked)
        found.append(f"compared on the {len(common)} pairs that all have in common ({counts})")
    both = [(pooled(first, {key}).score, pooled(second, {key}).score) for key in sorted(common)]
    differences = [ours - theirs for ours, theirs in both if math.isfinite(ours) and math.isfinite(theirs)]
    if len(differences) > 1:
        error = stdev(differences) / math.sqrt(len(differences))
        clear = float(stats.t.ppf(1 - CHANCE / 2, len(differences) - 1))  # standard errors, Student's test
        if abs(mean(differences)) <= clear * error:
            found.append(
                f"{first.name} and {second.name} do not clearly differ: {mean(differences):+.4f} ± {error:.4f} (mean "
                f"and standard error of the difference over {len(differences)} pairs)"
            )
    return found


def leaking(model: Model) -> list[str]:
    """Say where the scores of a model are not about cases that it has never seen.

    Args:
        model: The model.

    Returns:
        Sentences for the user.
    """
    kinds = {fold.name: fold.result.held_out for fold in model.folds if fold.counts and fold.result}
    found = []
    for kind, text in (("none", "pairs that it was trained on"), ("fixed only", "pairs whose moving case it has seen")):
        folds = [name for name, held_out in kinds.items() if held_out == kind]
        if folds:
            found.append(f"{model.name}, fold {', '.join(folds)}: the scores are of {text}")
    return found
