"""Compare methods pair by pair: how much better, how surely, and on how many pairs.

`documentation/reference/metrics.md` defines each number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from biasreg.evaluation.records import IDENTITY, Comparison, PairScores

METRICS = ("dice", "hd95_mm", "tre_mm", "folding_percent")
HIGHER_IS_BETTER = ("dice",)

MIN_PAIRS = 6
"""Below, no result of a two-sided signed-rank test is under 0.05: the smallest p of 5 pairs is 2 / 2⁵ = 0.0625."""

FEW_IMAGES = 12
"""Below, intervals over pairs that share images hold the truth in 78 to 86 % where effects of the images prevail."""

EXACT_PAIRS = 13  # with 2¹³ sign patterns, all are looked at within milliseconds
DECIMALS = 9  # differences are rounded to so many, or rounding errors of means would break ties and zeros
RESAMPLES = 5000
CONFIDENCE_PERCENTILES = (2.5, 97.5)
SEED = 0


def compare_methods(pairs: Sequence[PairScores], reference: str) -> tuple[Comparison, ...]:
    """Compare every other method with a reference method, over the pairs that both have.

    Folding is not compared with identity's, which is 0 by definition.

    Args:
        pairs: Scores of all pairs under all methods.
        reference: Name of the method that the others are compared with.

    Returns:
        By metric (`METRICS`), then by method in the order of `pairs`. A metric that no pair has under both methods is
        left out.
    """
    by_method: dict[str, dict[str, PairScores]] = {}
    for score in pairs:
        by_method.setdefault(score.method, {})[score.pair] = score
    known = by_method.pop(reference, {})
    comparisons: list[Comparison] = []
    for metric in METRICS:
        others = (name for name in by_method if not (metric == "folding_percent" and IDENTITY in (name, reference)))
        found = (_compare(metric, by_method[name], known) for name in others)
        comparisons += _adjusted([comparison for comparison in found if comparison is not None])
    return tuple(comparisons)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number, so that the chance of any false finding stays below the level.

    The k-th smallest of m is multiplied by m - k + 1; none becomes smaller than the one before it, or larger than 1.

    Args:
        p_values: m values in [0, 1].

    Returns:
        Adjusted values, in the order given.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6:65-70.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.minimum(values[order] * np.arange(values.size, 0, -1), 1.0)
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(steps)
    return [float(value) for value in adjusted]


def rank_biserial(differences: NDArray[np.float64]) -> float:
    """Matched-pairs rank-biserial correlation, (rank sum of d > 0 - rank sum of d < 0) / rank sum of all.

    Ranks are those of |d|, ties sharing their mean rank. Pairs with d = 0 keep their rank and count for neither side.

    Args:
        differences: (N,), d of each pair.

    Returns:
        -1 (all negative) to 1 (all positive); 0 where all are 0.

    Source: Kerby 2014, doi:10.2466/11.IT.3.1. Kerby leaves pairs without a difference out, so that two pairs that
        differ among forty would give 1; here they stay, as in Pratt's form of the test.
    """
    signed = _signed_ranks(differences)
    return float(signed.sum() / (signed.size * (signed.size + 1) / 2))


def signed_rank_p(differences: NDArray[np.float64]) -> float:
    """Two-sided p-value of the signed-rank test, zeros ranked by Pratt's rule.

    Exact where at most 13 pairs differ, and up to 50 where there are neither ties nor zeros; otherwise by the normal
    approximation with correction for ties.

    Args:
        differences: (N,), at least two of them not 0.

    Source: Wilcoxon 1945, doi:10.2307/3001968; Pratt 1959, doi:10.1080/01621459.1959.10501526.
    """
    signed = _signed_ranks(differences)
    differing = signed[signed != 0]
    if differing.size <= EXACT_PAIRS:
        result = stats.permutation_test((differing,), np.sum, permutation_type="samples", n_resamples=np.inf)
    else:
        result = stats.wilcoxon(differences, zero_method="pratt")
    return float(result.pvalue)


def confidence_interval(
    differences: NDArray[np.float64], moving_images: Sequence[str], fixed_images: Sequence[str]
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean difference, that allows for pairs that share images.

    Images are drawn with replacement, and a pair counts as often as its moving image times its fixed image was drawn.
    Where no image is in two pairs, pairs are drawn instead, which is the ordinary bootstrap.

    Args:
        differences: (N,), one per pair.
        moving_images: Names of the pairs' moving images.
        fixed_images: Names of the pairs' fixed images.

    Returns:
        Lower and upper border.

    Source: Efron 1979, doi:10.1214/aos/1176344552; resampling of the members of pairs: Snijders and Borgatti 1999,
        Connections 22(2):161-170; Owen 2007, doi:10.1214/07-AOAS122, who shows that it errs to the wide side.
    """
    rng = np.random.default_rng(SEED)
    images, indices = np.unique([*moving_images, *fixed_images], return_inverse=True)
    moving, fixed = indices.reshape(2, -1)
    if images.size == 2 * differences.size:
        weights = _draws(rng, differences.size)  # (RESAMPLES, N)
    else:
        drawn = _draws(rng, images.size)
        weights = drawn[:, moving] * drawn[:, fixed]  # (RESAMPLES, N)
    totals = weights.sum(axis=1)
    means = (weights @ differences)[totals > 0] / totals[totals > 0]
    low, high = np.percentile(means, CONFIDENCE_PERCENTILES)
    return float(low), float(high)


def _draws(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """How often each of `count` things is drawn in `count` draws with replacement, (RESAMPLES, count)."""
    return rng.multinomial(count, np.full(count, 1.0 / count), size=RESAMPLES).astype(np.float64)


def _signed_ranks(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(differences) * stats.rankdata(np.abs(differences))


def _compare(metric: str, method: Mapping[str, PairScores], reference: Mapping[str, PairScores]) -> Comparison | None:
    values = {pair: _both(metric, method[pair], reference[pair]) for pair in method if pair in reference}
    known = {pair: both for pair, both in values.items() if both is not None}
    if not known:
        return None
    scores = [method[pair] for pair in known]
    moving, fixed = [score.moving_image for score in scores], [score.fixed_image for score in scores]
    differences = np.round([ours - theirs for ours, theirs in known.values()], DECIMALS)
    gains = differences if metric in HIGHER_IS_BETTER else -differences
    low = high = None
    if gains.size >= MIN_PAIRS and np.ptp(gains) > 0:
        low, high = confidence_interval(differences, moving, fixed)
    reason = _why_no_p(gains)
    return Comparison(
        metric=metric,
        method=scores[0].method,
        reference=next(iter(reference.values())).method,
        num_pairs=gains.size,
        num_images=len({*moving, *fixed}),
        mean_difference=float(differences.mean()),
        confidence_low=low,
        confidence_high=high,
        p_value=signed_rank_p(gains) if reason is None else None,
        p_adjusted=None,
        effect_size=rank_biserial(gains),
        better=int((gains > 0).sum()),
        worse=int((gains < 0).sum()),
        reason=reason,
    )


def _both(metric: str, method: PairScores, reference: PairScores) -> tuple[float, float] | None:
    """Give the metric of one pair under both methods; None where one of them lacks it.

    HD95 is over the labels that both have, since one that vanished under one method would change what is averaged.
    """
    if metric == "hd95_mm":
        theirs = {label.value: label.hd95_mm for label in reference.labels}
        both = [(label.hd95_mm, theirs.get(label.value)) for label in method.labels]
        known = [(a, b) for a, b in both if a is not None and b is not None]
        return (float(np.mean([a for a, _ in known])), float(np.mean([b for _, b in known]))) if known else None
    ours, its = getattr(method, metric), getattr(reference, metric)
    return None if ours is None or its is None else (ours, its)


def _why_no_p(gains: NDArray[np.float64]) -> str | None:
    differing = int(np.count_nonzero(gains))
    if gains.size < MIN_PAIRS:
        return f"{gains.size} pair(s), fewer than the {MIN_PAIRS} that a test needs"
    if differing == 0:
        return "all pairs are equal"
    if differing < MIN_PAIRS:
        return f"only {differing} pair(s) differ, fewer than the {MIN_PAIRS} that a test needs"
    return None


def _adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Fill in Holm's p-values over the comparisons that have one."""
    known = [comparison.p_value for comparison in comparisons if comparison.p_value is not None]
    adjusted = iter(holm(known))
    return [
        comparison if comparison.p_value is None else replace(comparison, p_adjusted=next(adjusted))
        for comparison in comparisons
    ]
