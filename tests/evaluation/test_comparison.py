import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from biasreg.evaluation.comparison import compare_methods, confidence_interval, holm, rank_biserial, signed_rank_p
from biasreg.evaluation.records import LabelScore, LandmarkScore

NAMES = [f"p{number:02d}" for number in range(40)]
# Whole numbers make ties and zeros likely, as voxel distances do.
DIFFERENCES = (
    st.lists(st.integers(-4, 4), min_size=6, max_size=9)
    .map(lambda values: np.array(values, dtype=float))
    .filter(lambda values: np.count_nonzero(values) > 1)
)


@pytest.fixture
def against(pair_scores):
    """Comparisons of `other` with `biasreg`, by metric, for Dice given pair by pair; None lacks the pair."""

    def compare(reference, other, **options):
        scores = [
            pair_scores(name, method, dice, **options)
            for method, values in (("biasreg", reference), ("other", other))
            for name, dice in zip(NAMES, values, strict=False)
            if dice is not None
        ]
        return {comparison.metric: comparison for comparison in compare_methods(scores, "biasreg")}

    return compare


def test_holm_multiplies_the_smallest_most_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.2]) == [0.2]
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferronis(p_values) -> None:
    for before, after in zip(p_values, holm(p_values), strict=True):
        assert before <= after <= min(1.0, before * len(p_values)) + 1e-12


def test_the_effect_size_of_a_case_done_by_hand() -> None:
    # |d| 1, 2, 2, 3 have the ranks 1, 2.5, 2.5, 4: (1 + 2.5 + 4 - 2.5) / 10
    assert rank_biserial(np.array([1.0, -2.0, 2.0, 3.0])) == pytest.approx(0.5)
    # a zero takes rank 1, and counts for neither: (2 + 3 - 4) / 10
    assert rank_biserial(np.array([0.0, 1.0, 2.0, -3.0])) == pytest.approx(0.1)


@given(DIFFERENCES)
def test_swapping_the_methods_turns_the_effect_and_keeps_p(differences) -> None:
    assert rank_biserial(-differences) == pytest.approx(-rank_biserial(differences))
    assert abs(rank_biserial(differences)) <= 1.0
    assert signed_rank_p(-differences) == pytest.approx(signed_rank_p(differences))


@given(DIFFERENCES)
def test_p_is_the_share_of_sign_patterns_that_are_as_extreme(differences) -> None:
    ranks = stats.rankdata(np.abs(differences))[differences != 0]
    observed = abs(np.sum(np.sign(differences[differences != 0]) * ranks))
    patterns = [abs(np.dot(signs, ranks)) for signs in itertools.product((-1, 1), repeat=ranks.size)]
    assert signed_rank_p(differences) == pytest.approx(np.mean(np.array(patterns) >= observed - 1e-9))


@pytest.mark.parametrize("count", [6, 12, 13, 14, 30, 50])
def test_without_ties_p_is_scipys_exact_one(count: int) -> None:
    differences = np.random.default_rng(count).normal(0.3, 1.0, count)
    assert signed_rank_p(differences) == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)


def test_many_pairs_with_ties_come_near_to_the_permutation_test() -> None:
    rng = np.random.default_rng(3)
    differences = rng.integers(-3, 5, 60).astype(float)
    signed = np.sign(differences) * stats.rankdata(np.abs(differences))
    drawn = rng.choice([-1.0, 1.0], (20000, 60)) @ np.abs(signed)
    assert signed_rank_p(differences) == pytest.approx(np.mean(np.abs(drawn) >= abs(signed.sum())), abs=0.01)


def test_a_shift_is_found_by_its_size_and_direction(against) -> None:
    reference = np.linspace(0.7, 0.9, 12)
    found = against(reference, reference - np.linspace(0.02, 0.13, 12))["dice"]
    assert (found.metric, found.method, found.reference) == ("dice", "other", "biasreg")
    assert found.mean_difference == pytest.approx(-0.075)
    assert found.confidence_low < -0.075 < found.confidence_high < 0
    assert (found.effect_size, found.better, found.equal, found.worse) == (-1.0, 0, 0, 12)
    assert found.p_value == pytest.approx(2 / 2**12)
    assert found.p_adjusted == found.p_value
    assert (found.num_pairs, found.num_images, found.reason) == (12, 24, None)


def test_lower_is_better_for_distances_and_folding(pair_scores) -> None:
    scores = []
    for index, name in enumerate(NAMES[:8]):
        for method, worse in (("biasreg", 0.0), ("other", 1.0 + index)):
            options = {
                "hd95_mm": 2 + worse,
                "landmarks": LandmarkScore(3 + worse, 0.0, 9.0, 4),
                "folding_percent": worse,
            }
            scores.append(pair_scores(name, method, 0.5, **options))
    found = {comparison.metric: comparison for comparison in compare_methods(scores, "biasreg")}
    for metric in ("hd95_mm", "tre_mm", "folding_percent"):
        assert found[metric].mean_difference == pytest.approx(4.5)
        assert (found[metric].effect_size, found[metric].worse) == (-1.0, 8)
    swapped = {comparison.metric: comparison for comparison in compare_methods(scores, "other")}
    assert swapped["tre_mm"].mean_difference == pytest.approx(-4.5)
    assert (swapped["tre_mm"].effect_size, swapped["tre_mm"].better) == (1.0, 8)
    assert swapped["tre_mm"].confidence_low == pytest.approx(-found["tre_mm"].confidence_high)


def test_only_pairs_that_both_methods_have_count(against) -> None:
    found = against([0.8] * 9 + [None] * 2, [None] * 2 + [0.7] * 9)["dice"]
    assert found.num_pairs == 7
    assert found.worse == 7


def test_methods_without_a_common_pair_are_not_compared(against) -> None:
    assert against([0.8, None], [None, 0.8]) == {}


def test_fewer_than_six_pairs_have_differences_but_no_test(against) -> None:
    found = against([0.8] * 5, [0.7, 0.6, 0.5, 0.4, 0.9])["dice"]
    assert found.mean_difference == pytest.approx(-0.18)
    assert (found.confidence_low, found.confidence_high, found.p_value, found.p_adjusted) == (None,) * 4
    assert found.reason == "5 pair(s), fewer than the 6 that a test needs"


def test_pairs_that_are_all_equal_have_no_test(against) -> None:
    found = against([0.8] * 7, [0.8] * 7)["dice"]
    assert (found.mean_difference, found.effect_size, found.equal) == (0.0, 0.0, 7)
    assert (found.p_value, found.confidence_low, found.reason) == (None, None, "all pairs are equal")


def test_two_pairs_that_differ_among_many_are_no_large_effect(against) -> None:
    found = against([0.8] * 40, [0.8] * 38 + [0.7, 0.6])["dice"]
    assert found.effect_size == pytest.approx(-(39 + 40) / 820)
    assert found.reason == "only 2 pair(s) differ, fewer than the 6 that a test needs"
    assert found.confidence_low < found.mean_difference < found.confidence_high


def test_rounding_errors_of_means_are_no_differences(against) -> None:
    found = against([0.1 + 0.2] * 8, [0.3] * 8)["dice"]
    assert (found.equal, found.reason) == (8, "all pairs are equal")


def test_holm_runs_over_the_methods_of_one_metric(pair_scores) -> None:
    steps = {"biasreg": np.zeros(8), "a": np.arange(1, 9), "b": np.array([-1, 2, 3, 4, 5, 6, 7, 8])}
    scores = [
        pair_scores(name, method, 0.5 + 0.01 * step)
        for method, gained in steps.items()
        for name, step in zip(NAMES, gained, strict=False)
    ]
    a, b = (comparison for comparison in compare_methods(scores, "biasreg") if comparison.metric == "dice")
    assert (a.p_value, b.p_value) == pytest.approx((2 / 256, 4 / 256))
    assert (a.p_adjusted, b.p_adjusted) == pytest.approx((4 / 256, 4 / 256))


def test_hd95_is_over_the_labels_that_both_methods_have(pair_scores) -> None:
    scores = []
    for name in NAMES[:6]:
        liver, lost = LabelScore(1, "liver", 0.9, 2.0), LabelScore(2, "spleen", 0.0, None, "gone")
        scores.append(pair_scores(name, "biasreg", 0.45, 2.0, labels=(liver, lost)))
        far = LabelScore(2, "spleen", 0.5, 20.0)
        scores.append(pair_scores(name, "other", 0.7, 11.0, labels=(LabelScore(1, "liver", 0.9, 3.0), far)))
    found = {comparison.metric: comparison for comparison in compare_methods(scores, "biasreg")}
    assert found["hd95_mm"].mean_difference == pytest.approx(1.0)
    assert found["dice"].better == 6


def test_folding_is_not_compared_with_identitys(pair_scores) -> None:
    scores = [pair_scores(name, method, 0.5) for name in NAMES[:6] for method in ("identity", "biasreg")]
    assert [comparison.metric for comparison in compare_methods(scores, "biasreg")] == ["dice", "hd95_mm"]


def test_the_interval_is_scipys_where_no_image_is_in_two_pairs() -> None:
    differences = np.random.default_rng(0).normal(1.0, 2.0, 30)
    moving, fixed = [f"m{index}" for index in range(30)], [f"f{index}" for index in range(30)]
    expected = stats.bootstrap((differences,), np.mean, method="percentile", random_state=1).confidence_interval
    assert confidence_interval(differences, moving, fixed) == pytest.approx(tuple(expected), abs=0.08)
    assert confidence_interval(differences, moving, fixed) == confidence_interval(differences, moving, fixed)


def test_shared_images_widen_the_interval() -> None:
    """Six images, all pairs of them; a method that is bad on one image is bad on a third of the pairs."""
    pairs = list(itertools.permutations(range(6), 2))
    moving, fixed = [str(first) for first, _ in pairs], [str(second) for _, second in pairs]
    differences = np.array([1.0 if 0 in pair else 0.0 for pair in pairs])
    alone = [f"{index}" for index in range(len(pairs))]
    low, high = confidence_interval(differences, moving, fixed)
    narrow_low, narrow_high = confidence_interval(differences, alone, [f"f{name}" for name in alone])
    assert low < narrow_low < narrow_high < high


def test_the_interval_covers_the_truth_although_pairs_share_images() -> None:
    """Pairs of 20 images whose effects make most of the differences: pairs alone cover it in two of three cases."""
    rng = np.random.default_rng(5)
    covered = {"images": 0, "pairs": 0}
    for _ in range(100):
        moving, fixed = rng.integers(0, 20, (2, 40))
        fixed = np.where(moving == fixed, (fixed + 1) % 20, fixed)
        effects = rng.normal(size=20)
        differences = effects[moving] + effects[fixed] + 0.5 * rng.normal(size=40)
        low, high = confidence_interval(differences, moving.astype(str), fixed.astype(str))
        covered["images"] += low <= 0 <= high
        names = [f"{index}" for index in range(40)]
        low, high = confidence_interval(differences, names, [f"f{name}" for name in names])
        covered["pairs"] += low <= 0 <= high
    assert covered["images"] >= 88
    assert covered["pairs"] < 80
