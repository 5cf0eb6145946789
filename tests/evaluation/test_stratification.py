import pytest
from hypothesis import given
from hypothesis import strategies as st

from biasreg.evaluation.records import LabelScore, LandmarkScore
from biasreg.evaluation.stratification import stratify, thirds_of, worst_cases

NAMES = [f"p{number:02d}" for number in range(40)]


@pytest.fixture
def scores(pair_scores):
    """Identity and two methods over as many pairs as Dice are given; pairs listed in `lost` have no `other`."""

    def make(initial, registered, deformation=None, lost=()):
        made = []
        for index, (name, before, after) in enumerate(zip(NAMES, initial, registered, strict=False)):
            size = index if deformation is None else deformation[index]
            made.append(pair_scores(name, "identity", before, deformation_mm=0.0))
            made.append(pair_scores(name, "biasreg", after, deformation_mm=float(size)))
            if name not in lost:
                made.append(pair_scores(name, "other", 0.6, deformation_mm=9.0))
        return made

    return make


@given(st.lists(st.floats(-100, 100), min_size=6, max_size=50), st.booleans())
def test_thirds_keep_the_order_and_ties_together(values, large_is_low) -> None:
    by_pair = {str(index): value for index, value in enumerate(values)}
    thirds = thirds_of(by_pair, large_is_low)
    for first, one in thirds.items():
        for second, other in thirds.items():
            if by_pair[first] == by_pair[second]:
                assert one == other
            elif (by_pair[first] < by_pair[second]) != large_is_low:
                assert one <= other


@given(st.integers(6, 60))
def test_thirds_of_different_values_are_equally_large(count) -> None:
    thirds = list(thirds_of({str(index): index for index in range(count)}).values())
    sizes = [thirds.count(third) for third in range(3)]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1


def test_few_pairs_and_a_single_value_have_no_thirds() -> None:
    assert thirds_of({str(index): index for index in range(5)}) == {}
    assert thirds_of({str(index): 0.5 for index in range(9)}) == {}


def test_ties_go_where_the_middle_of_their_ranks_is() -> None:
    """Pairs that do not overlap at all before registration are the hard ones, however many there are."""
    initial = dict(zip(NAMES, [0.4, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0], strict=False))
    assert list(thirds_of(initial, large_is_low=True).values()) == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2]


def test_low_initial_dice_is_large_misalignment(scores) -> None:
    strata = stratify(scores([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), "biasreg")
    found = {(one.name, one.method): one for one in strata if one.by == "initial_dice"}
    assert list(dict.fromkeys(name for name, _ in found)) == ["small", "medium", "large"]
    assert (found["large", "biasreg"].lower, found["large", "biasreg"].upper) == (0.1, 0.2)
    assert found["large", "biasreg"].dice.mean == pytest.approx(0.85)
    assert found["small", "biasreg"].dice.mean == pytest.approx(0.45)
    assert found["small", "identity"].dice.mean == pytest.approx(0.55)


def test_the_reference_methods_deformation_divides_all_methods_alike(scores) -> None:
    made = scores([0.5] * 6, [0.7] * 6, deformation=[6, 5, 4, 3, 2, 1])
    strata = stratify(made, "biasreg")
    assert {stratum.by for stratum in strata} == {"deformation_mm"}  # identity's Dice is the same everywhere
    large = [stratum for stratum in strata if stratum.name == "large"]
    assert {(stratum.lower, stratum.upper, stratum.num_pairs) for stratum in large} == {(5.0, 6.0, 2)}
    assert [stratum.method for stratum in large] == ["identity", "biasreg", "other"]
    assert stratify(made, "other") == ()  # its fields are all alike


def test_a_pair_that_a_method_lacks_is_missing_from_its_stratum_alone(scores) -> None:
    strata = stratify(scores([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.7] * 6, lost=("p00", "p01")), "biasreg")
    large = {one.method: one for one in strata if (one.by, one.name) == ("initial_dice", "large")}
    assert [large[name].num_pairs for name in ("identity", "biasreg", "other")] == [2, 2, 0]
    assert large["other"].dice is None


def test_pairs_that_the_reference_method_lacks_have_no_deformation(scores) -> None:
    made = scores([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.7] * 6)
    made = [score for score in made if (score.pair, score.method) != ("p03", "biasreg")]
    assert {stratum.by for stratum in stratify(made, "biasreg")} == {"initial_dice"}


def test_without_labels_the_landmark_error_tells_misalignment(pair_scores) -> None:
    made = [
        pair_scores(name, method, None, None, labels=(), landmarks=LandmarkScore(error, 0.0, error, 3))
        for index, name in enumerate(NAMES[:6])
        for method, error in (("identity", 10.0 - index), ("biasreg", 1.0))
    ]
    large = [stratum for stratum in stratify(made, "biasreg") if stratum.name == "large"]
    assert [(one.by, one.lower, one.upper) for one in large] == [("initial_tre_mm", 9.0, 10.0)] * 2
    assert [one.tre_mm.mean for one in large] == [9.5, 1.0]


def test_the_worst_pairs_come_first_beside_what_others_reach(scores) -> None:
    made = scores([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.05, 0.9, 0.5, 0.9, 0.9, 0.9])
    first, second = worst_cases(made, "biasreg", 2)
    assert (first.pair, first.metric, first.value, first.initial) == ("p00", "dice", 0.05, 0.1)
    assert (first.best_method, first.best_value) == ("other", 0.6)
    assert first.reasons[0] == "worse than no registration"
    assert "large initial misalignment" in first.reasons
    assert "large deformation" not in first.reasons
    assert (second.pair, second.value) == ("p02", 0.5)
    assert len(worst_cases(made, "biasreg", 99)) == 6


def test_large_deformation_is_a_reason(scores) -> None:
    (worst,) = worst_cases(scores([0.5] * 6, [0.9, 0.9, 0.8, 0.9, 0.9, 0.8]), "biasreg", 2)[1:]
    assert worst.reasons == ("large deformation",)


def test_labels_that_are_lost_or_unusual_are_reasons(pair_scores) -> None:
    made = []
    for index, name in enumerate(NAMES[:10]):
        liver = LabelScore(1, "liver", 0.3 if index == 9 else 0.9, 2.0)
        spleen = LabelScore(2, "spleen", 0.8, 2.0) if index < 9 else LabelScore(2, "spleen", 0.0, None, "gone")
        absent = LabelScore(3, "ghost", None, None, "in neither label map")
        made.append(pair_scores(name, "biasreg", (liver.dice + spleen.dice) / 2, labels=(liver, spleen, absent)))
    worst, other = worst_cases(made, "biasreg", 2)
    assert worst.reasons == ("nothing left after warping: spleen", "unusually low Dice: liver 0.300")
    assert (worst.initial, worst.best_method) == (None, None)
    assert other.reasons == ()


def test_of_many_labels_the_lowest_are_named(pair_scores) -> None:
    made = []
    for index, name in enumerate(NAMES[:10]):
        labels = [LabelScore(value, f"l{value}", 0.1 * value if index == 9 else 0.9, 2.0) for value in range(1, 6)]
        made.append(pair_scores(name, "biasreg", 0.3 if index == 9 else 0.9, labels=tuple(labels)))
    (worst,) = worst_cases(made, "biasreg", 1)
    (reason,) = worst.reasons
    assert reason.startswith("unusually low Dice: ")
    assert reason.endswith(" and 2 more")


def test_without_labels_the_worst_is_by_landmarks_and_then_by_folding(pair_scores) -> None:
    def bare(name, folding, error=None):
        landmarks = None if error is None else LandmarkScore(error, 0.0, error, 3)
        options = {"labels": (), "landmarks": landmarks, "folding_percent": folding}
        return pair_scores(name, "biasreg", None, None, **options)

    (worst,) = worst_cases([bare("a", 5.0, 1.0), bare("b", 0.0, 4.0)], "biasreg", 1)
    assert (worst.pair, worst.metric, worst.value) == ("b", "tre_mm", 4.0)
    identity = pair_scores("a", "identity", None, None, labels=(), folding_percent=0.0)
    (worst,) = worst_cases([identity, bare("a", 5.0), bare("b", 0.0)], "biasreg", 1)
    assert (worst.pair, worst.metric, worst.value, worst.initial) == ("a", "folding_percent", 5.0, None)


def test_equally_bad_pairs_are_in_the_order_of_their_names(pair_scores) -> None:
    made = [pair_scores(name, "biasreg", 0.5) for name in ("b", "a")]
    assert [case.pair for case in worst_cases(made, "biasreg", 2)] == ["a", "b"]
    assert worst_cases(made, "absent", 2) == ()
