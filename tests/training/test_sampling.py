from collections import Counter

import numpy as np
import pytest

from biasreg.core.errors import DatasetError
from biasreg.training.sampling import PairSampler, select_pairs

SUBJECTS = {"a1": "a", "a2": "a", "b1": "b", "c1": "c", "c2": "c", "c3": "c"}
LISTED = [("a1", "b1"), ("c1", "a2"), ("b1", "elsewhere")]


def draws(sampler, count=400):
    rng = np.random.default_rng(0)
    return [sampler.draw(rng) for _ in range(count)]


def test_inter_subject_pairs_never_join_a_subject_with_itself():
    pairs = draws(PairSampler(SUBJECTS, "inter-subject"))
    assert all(SUBJECTS[moving] != SUBJECTS[fixed] for moving, fixed in pairs)
    assert {case for pair in pairs for case in pair} == set(SUBJECTS)


def test_intra_subject_pairs_join_different_cases_of_one_subject():
    pairs = draws(PairSampler(SUBJECTS, "intra-subject"))
    assert all(SUBJECTS[moving] == SUBJECTS[fixed] and moving != fixed for moving, fixed in pairs)
    assert {case for pair in pairs for case in pair} == {"a1", "a2", "c1", "c2", "c3"}


def test_listed_pairs_are_drawn_in_both_directions_and_only_inside_the_fold():
    pairs = draws(PairSampler(SUBJECTS, "listed", LISTED))
    assert set(pairs) == {("a1", "b1"), ("b1", "a1"), ("a2", "c1"), ("c1", "a2")}


@pytest.mark.parametrize("pairing", ["inter-subject", "intra-subject"])
def test_both_directions_are_drawn(pairing):
    pairs = set(draws(PairSampler(SUBJECTS, pairing), 2000))
    assert {(fixed, moving) for moving, fixed in pairs} == pairs


@pytest.mark.parametrize(
    ("subjects", "pairing"),
    [({"a1": "a", "a2": "a"}, "inter-subject"), ({"a": "a", "b": "b"}, "intra-subject"), (SUBJECTS, "listed")],
)
def test_cases_without_any_pair_are_refused(subjects, pairing):
    with pytest.raises(DatasetError, match=pairing):
        PairSampler(subjects, pairing, [("a1", "elsewhere")])


def test_selected_pairs_are_distinct_and_use_every_case_about_equally():
    sampler = PairSampler({f"case{index:02}": str(index) for index in range(10)}, "inter-subject")
    pairs = select_pairs(sampler, 10)
    uses = Counter(case for pair in pairs for case in pair)
    assert len(set(pairs)) == 10
    assert len(uses) == 10
    assert max(uses.values()) - min(uses.values()) <= 2
    assert pairs == select_pairs(sampler, 10)


def test_selection_takes_all_pairs_when_there_are_few():
    sampler = PairSampler({"a": "a", "b": "b"}, "inter-subject")
    assert set(select_pairs(sampler, 50)) == {("a", "b"), ("b", "a")}


def test_selection_onto_held_out_cases_takes_the_others_as_moving():
    pairs = select_pairs(PairSampler(SUBJECTS, "inter-subject"), 20, fixed_cases={"b1"})
    assert {fixed for _, fixed in pairs} == {"b1"}
    assert {moving for moving, _ in pairs} == set(SUBJECTS) - {"b1"}
