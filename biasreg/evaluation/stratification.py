"""Look at easy and hard pairs apart, and name the worst ones.

Source: Figs. 13 and 14 of BIASNet, Medical Image Analysis 2025, 103913.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence

from biasreg.evaluation.comparison import HIGHER_IS_BETTER, MIN_PAIRS
from biasreg.evaluation.records import IDENTITY, PairScores, Statistic, Stratum, WorstCase

THIRDS = ("small", "medium", "large")
UNUSUAL_STDS = 2.0  # a label's Dice so many standard deviations below its mean is named
NAMED_LABELS = 3
REASONS = {
    "initial_dice": "large initial misalignment",
    "initial_tre_mm": "large initial misalignment",
    "deformation_mm": "large deformation",
}
_LARGE_IS_LOW = ("initial_dice",)


def stratify(pairs: Sequence[PairScores], reference: str) -> tuple[Stratum, ...]:
    """Divide the pairs into thirds by initial misalignment and by size of the deformation, and sum up every method.

    Misalignment is identity's Dice, or its landmark error where no pair has labels; the deformation is that of the
    reference method's fields. Pairs with the same value are in the same third, so that thirds may differ in size where
    there are ties, or be missing.

    Args:
        pairs: Scores of all pairs under all methods.
        reference: Name of the method whose fields tell the size of the deformation.

    Returns:
        By criterion, third and method. Empty for a criterion that fewer than 6 pairs have, or that does not vary.
    """
    strata: list[Stratum] = []
    for by, values in _criteria(pairs, reference).items():
        thirds = thirds_of(values, large_is_low=by in _LARGE_IS_LOW)
        for third, name in enumerate(THIRDS):
            inside = {pair: values[pair] for pair in thirds if thirds[pair] == third}
            if inside:
                strata += _strata(by, name, inside, pairs)
    return tuple(strata)


def thirds_of(values: Mapping[str, float], large_is_low: bool = False) -> dict[str, int]:
    """Divide pairs into thirds of equal number by a value.

    Args:
        values: Value by pair.
        large_is_low: Whether the last third is that of the lowest values.

    Returns:
        0, 1 or 2 by pair, equal values in the same third (the one of the middle of their ranks); empty for fewer than 6
        pairs or one value alone.
    """
    if len(values) < MIN_PAIRS or len(set(values.values())) == 1:
        return {}
    signed = {pair: -value if large_is_low else value for pair, value in values.items()}
    ordered = sorted(signed.values())
    count = len(ordered)
    middle = {pair: bisect_left(ordered, key) + bisect_right(ordered, key) for pair, key in signed.items()}  # twice it
    return {pair: 3 * twice // (2 * count) for pair, twice in middle.items()}


def worst_cases(pairs: Sequence[PairScores], method: str, count: int) -> tuple[WorstCase, ...]:
    """Name the worst pairs of a method, worst first.

    By lowest Dice; where no pair has labels by highest landmark error, and without landmarks by highest folding.

    Args:
        pairs: Scores of all pairs under all methods.
        method: Name of the method.
        count: How many, at most.

    Returns:
        Fewer than `count` where the method has fewer pairs.
    """
    scores = [score for score in pairs if score.method == method]
    metric = next((name for name in ("dice", "tre_mm") if _known(scores, name)), "folding_percent")
    ranked = sorted(_known(scores, metric).items(), key=lambda item: (_goodness(metric, item[1]), item[0]))
    hard = _hard_pairs(pairs, method)
    by_pair: dict[str, dict[str, PairScores]] = {}
    for score in pairs:
        by_pair.setdefault(score.pair, {})[score.method] = score
    usual = _usual_dice(scores)
    return tuple(
        _worst_case(metric, method, by_pair[pair], [*_label_reasons(by_pair[pair][method], usual), *hard.get(pair, ())])
        for pair, _ in ranked[:count]
    )


def _criteria(pairs: Sequence[PairScores], reference: str) -> dict[str, dict[str, float]]:
    """Value by pair of each criterion that pairs are divided by."""
    identity = [score for score in pairs if score.method == IDENTITY]
    registered = [score for score in pairs if score.method == reference]
    initial = next((name for name in ("dice", "tre_mm") if _known(identity, name)), None)
    criteria = {} if initial is None else {f"initial_{initial}": _known(identity, initial)}
    return {**criteria, "deformation_mm": _known(registered, "deformation_mm")}


def _known(scores: Sequence[PairScores], metric: str) -> dict[str, float]:
    return {score.pair: value for score in scores if (value := getattr(score, metric)) is not None}


def _strata(by: str, name: str, inside: Mapping[str, float], pairs: Sequence[PairScores]) -> Iterator[Stratum]:
    """Sum up every method over the pairs inside one third."""
    lower, upper = min(inside.values()), max(inside.values())
    for method in dict.fromkeys(score.method for score in pairs):
        scores = [score for score in pairs if score.method == method and score.pair in inside]
        yield Stratum(
            by=by,
            name=name,
            lower=lower,
            upper=upper,
            method=method,
            num_pairs=len(scores),
            dice=Statistic.of(score.dice for score in scores),
            hd95_mm=Statistic.of(score.hd95_mm for score in scores),
            tre_mm=Statistic.of(score.tre_mm for score in scores),
            folding_percent=Statistic.of(score.folding_percent for score in scores),
        )


def _hard_pairs(pairs: Sequence[PairScores], method: str) -> dict[str, list[str]]:
    """Why pairs are hard, by pair: those in the last third of a criterion."""
    hard: dict[str, list[str]] = {}
    for by, values in _criteria(pairs, method).items():
        for pair, third in thirds_of(values, large_is_low=by in _LARGE_IS_LOW).items():
            if third == len(THIRDS) - 1:
                hard.setdefault(pair, []).append(REASONS[by])
    return hard


def _worst_case(metric: str, method: str, scores: Mapping[str, PairScores], causes: Sequence[str]) -> WorstCase:
    """Put one pair beside what the other methods reach there; `scores` are those of the pair, by method."""
    known = _known_by_method(scores, metric)
    value = known.pop(method)
    initial = known.pop(IDENTITY, None) if metric != "folding_percent" else None
    known.pop(IDENTITY, None)
    best = max(known, key=lambda name: _goodness(metric, known[name]), default=None)
    worse = initial is not None and _goodness(metric, value) < _goodness(metric, initial)
    return WorstCase(
        pair=scores[method].pair,
        method=method,
        metric=metric,
        value=value,
        initial=initial,
        best_method=best,
        best_value=None if best is None else known[best],
        reasons=(*(["worse than no registration"] if worse else []), *causes),
    )


def _known_by_method(scores: Mapping[str, PairScores], metric: str) -> dict[str, float]:
    return {method: value for method, score in scores.items() if (value := getattr(score, metric)) is not None}


def _goodness(metric: str, value: float) -> float:
    return value if metric in HIGHER_IS_BETTER else -value


def _usual_dice(scores: Sequence[PairScores]) -> dict[int, Statistic]:
    """Dice of each label over a method's pairs, by its value; labels that few pairs have are left out."""
    found: dict[int, list[float | None]] = {}
    for label in (label for score in scores for label in score.labels):
        found.setdefault(label.value, []).append(label.dice)
    summed = {value: Statistic.of(dice) for value, dice in found.items()}
    return {value: known for value, known in summed.items() if known is not None and known.count >= MIN_PAIRS}


def _label_reasons(score: PairScores, usual: Mapping[int, Statistic]) -> Iterator[str]:
    """Name the labels that were lost, and those that lie far worse than they do in the method's other pairs."""
    measured = [(label, label.dice) for label in score.labels if label.dice is not None]
    lost = [label.name for label, _ in measured if label.hd95_mm is None]
    if lost:
        yield f"nothing left after warping: {_first(lost)}"
    unusual = []
    for label, dice in measured:
        others = usual.get(label.value)
        if label.name not in lost and others is not None and dice < others.mean - UNUSUAL_STDS * others.std:
            unusual.append(((dice - others.mean) / others.std, f"{label.name} {dice:.3f}"))
    if unusual:
        yield f"unusually low Dice: {_first([text for _, text in sorted(unusual)])}"


def _first(names: Sequence[str]) -> str:
    more = len(names) - NAMED_LABELS
    return ", ".join(names[:NAMED_LABELS]) + (f" and {more} more" if more > 0 else "")
