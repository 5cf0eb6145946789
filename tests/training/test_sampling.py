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


def test_subjects_are_drawn_alike_however_many_cases_they_have():
    counts = Counter(SUBJECTS[case] for pair in draws(PairSampler(SUBJECTS, "inter-subject"), 3000) for case in pair)
    assert {subject: round(count / 6000, 1) for subject, count in counts.items()} == {"a": 0.3, "b": 0.3, "c": 0.3}


@pytest.mark.parametrize("pairing", ["inter-subject", "intra-subject"])
def test_a_label_that_few_cases_show_is_drawn_as_often_as_the_others(pairing):
    subjects = {f"case{index:02}": str(index // 2) for index in range(40)}
    shown = {case: (1,) for case in subjects} | {"case00": (1, 2), "case01": (1, 2), "case02": (1, 2)}
    plain = draws(PairSampler(subjects, pairing), 2000)
    balanced = draws(PairSampler(subjects, pairing, shown=shown), 2000)
    rare, before = (sum(all(2 in shown[case] for case in pair) for pair in pairs) / 2000 for pairs in (balanced, plain))
    assert before < 0.06
    assert rare == pytest.approx(0.25, abs=0.06)
    assert {(fixed, moving) for moving, fixed in balanced if 2 in shown[moving] and 2 in shown[fixed]} <= set(balanced)
    assert {case for pair in balanced for case in pair} == set(subjects)


def test_labels_that_all_cases_show_or_that_make_no_pair_change_nothing():
    plain = draws(PairSampler(SUBJECTS, "inter-subject"))
    assert draws(PairSampler(SUBJECTS, "inter-subject", shown={case: (1, 2) for case in SUBJECTS})) == plain
    lonely = {case: (1,) for case in SUBJECTS} | {"b1": (1, 2)}
    assert set(draws(PairSampler(SUBJECTS, "inter-subject", shown=lonely), 2000)) == set(
        draws(PairSampler(SUBJECTS, "inter-subject"), 2000)
    )


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
