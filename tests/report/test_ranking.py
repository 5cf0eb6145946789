from pathlib import Path

import pytest

from biasreg.report.predictions import PredictedPair
from biasreg.report.ranking import PairRow, choose_pairs, is_ranked, rank_word


def row(name, dice=None, tre=None, folding=None):
    return PairRow(PredictedPair(name, Path()), None, dice, None, tre, folding, None, None)


ROWS = tuple(row(f"p{index}", dice=0.5 + 0.05 * index) for index in range(7))


def test_worst_median_and_best_are_chosen_first_then_the_bad_ones():
    assert [each.name for each in choose_pairs(ROWS, 5)] == ["p0", "p3", "p6", "p1", "p2"]


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (7, 7), (50, 7)])
def test_no_pair_is_chosen_twice(count, expected):
    chosen = choose_pairs(ROWS, count)
    assert len(chosen) == len(set(chosen)) == expected
    assert choose_pairs((), count) == ()


def test_ranks_are_told_in_words():
    words = [rank_word(each, ROWS) for each in ROWS]
    assert (words[0], words[3], words[6], words[1]) == ("worst", "median", "best", "2 of 7 from the worst")


def test_a_pair_without_labels_is_neither_worst_nor_best_among_pairs_with_labels():
    rows = (row("a", dice=0.5, folding=0.0), row("b", dice=0.9, folding=0.0), row("c", folding=9.0), row("d"))
    assert [rank_word(each, rows) for each in rows] == ["worst", "best", "", ""]
    assert [each.name for each in choose_pairs(rows, 2)] == ["a", "b"]


def test_pairs_that_nothing_tells_apart_have_no_rank():
    rows = (row("a"), row("b"))
    assert not is_ranked(rows)
    assert rank_word(rows[0], rows) == ""
    assert is_ranked((row("a", folding=1.0), row("b", folding=0.0)))


def test_overlap_counts_before_landmarks_and_landmarks_before_folding():
    assert row("a", dice=0.9, tre=50.0).badness < row("b", dice=0.8, tre=1.0).badness
    assert row("a", tre=1.0, folding=9.0).badness < row("b", tre=2.0, folding=0.0).badness
