import pytest

from biasreg.core.errors import DatasetError
from biasreg.planning.splits import Fold, check_folds, fits, make_splits


def test_no_subject_is_in_both_parts_of_a_fold():
    subjects = {f"case{number}": f"subject{number // 3}" for number in range(30)}
    folds = make_splits(subjects)
    assert len(folds) == 5
    for fold in folds:
        assert not {subjects[case] for case in fold.train} & {subjects[case] for case in fold.validation}
        assert sorted(fold.train + fold.validation) == sorted(subjects)
    assert sorted(case for fold in folds for case in fold.validation) == sorted(subjects)


def test_fewer_subjects_give_fewer_folds_and_one_is_refused():
    assert len(make_splits({"a": "1", "b": "2", "c": "3"})) == 3
    with pytest.raises(DatasetError, match="1 subject"):
        make_splits({"a": "1", "b": "1"})


def test_the_order_of_cases_does_not_matter():
    subjects = {f"case{number}": f"case{number}" for number in range(11)}
    assert make_splits(subjects) == make_splits(dict(reversed(subjects.items())))


def test_listed_pairs_stay_together():
    subjects = {f"case{number}": f"case{number}" for number in range(20)}
    pairs = [(f"case{2 * number}", f"case{2 * number + 1}") for number in range(10)]
    for fold in make_splits(subjects, pairs):
        assert all((first in fold.validation) == (second in fold.validation) for first, second in pairs)
        assert fold.validation


def test_pairs_that_join_all_subjects_are_refused_as_the_reason():
    with pytest.raises(DatasetError, match=r"3 subject\(s\), all of them joined by the listed 'pairs'"):
        make_splits({"a": "1", "b": "2", "c": "3"}, [("a", "b"), ("c", "b")])


@pytest.mark.parametrize(
    ("subjects", "pairing", "pairs", "fold"),
    [
        ({"a": "1", "b": "2", "c": "3"}, "inter-subject", [], None),
        ({"a": "1", "b": "2"}, "inter-subject", [], 0),
        ({"a": "1", "b": "2", "c": "3"}, "intra-subject", [], 0),
        ({"a1": "a", "a2": "a", "b1": "b", "b2": "b"}, "intra-subject", [], None),
        ({"a": "1", "b": "2", "c": "3"}, "listed", [("a", "b")], 0),
        ({"a": "1", "b": "2", "c": "3", "d": "4"}, "listed", [("a", "b"), ("c", "d")], None),
    ],
)
def test_folds_whose_training_part_holds_no_pair_are_refused(subjects, pairing, pairs, fold):
    folds = make_splits(subjects, pairs)
    if fold is None:
        check_folds(folds, subjects, pairing, pairs)
        return
    with pytest.raises(DatasetError, match=rf"fold \d of {len(folds)} cannot be trained: its .*pairing '{pairing}'"):
        check_folds(folds, subjects, pairing, pairs)


SUBJECTS = {"a1": "a", "a2": "a", "b1": "b", "c1": "c"}


@pytest.mark.parametrize(
    ("folds", "expected"),
    [
        ([Fold(("a1", "a2"), ("b1", "c1")), Fold(("b1", "c1"), ("a1", "a2"))], True),
        ([Fold(("a1", "a2", "b1", "c1"), ())], True),
        ([Fold(("a1", "b1"), ("a2", "c1"))], False),  # a subject on both sides
        ([Fold(("a1", "a2"), ("b1",))], False),  # a case in no fold
        ([Fold(("a1", "a2", "x"), ("b1", "c1"))], False),  # an unknown case
        ([Fold((), ("a1", "a2", "b1", "c1"))], False),  # nothing to train on
        ([], False),
    ],
)
def test_folds_fit_if_they_are_of_these_cases_and_keep_subjects_apart(folds, expected):
    assert fits(folds, SUBJECTS) == expected


def test_folds_that_are_made_fit():
    assert fits(make_splits(SUBJECTS), SUBJECTS)
