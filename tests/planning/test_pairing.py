import pytest

from biasreg.core.errors import DatasetError
from biasreg.planning.pairing import paired_cases, pairs_among

SUBJECTS = {"b1": "b", "a1": "a", "a2": "a"}


@pytest.mark.parametrize(
    ("pairing", "expected"),
    [("inter-subject", ("a1", "a2", "b1")), ("intra-subject", ("a1", "a2")), ("listed", ("a2", "b1"))],
)
def test_cases_with_a_partner_are_found(pairing, expected):
    assert paired_cases(SUBJECTS, pairing, [("b1", "a2"), ("a1", "elsewhere"), ("a1", "a1")]) == expected


@pytest.mark.parametrize(
    ("subjects", "pairing"),
    [({"a1": "a", "a2": "a"}, "inter-subject"), ({"a": "a", "b": "b"}, "intra-subject"), (SUBJECTS, "listed")],
)
def test_cases_without_any_pair_are_refused_with_what_the_pairing_needs(subjects, pairing):
    with pytest.raises(DatasetError, match=rf"{len(subjects)} case\(s\).*no pair.*pairing '{pairing}'.* needs"):
        paired_cases(subjects, pairing, [("a1", "elsewhere")])


def test_a_listed_pair_counts_once_whichever_its_direction():
    assert pairs_among("abc", [("b", "a"), ("a", "b"), ("c", "a"), ("c", "d"), ("c", "c")]) == (("a", "b"), ("a", "c"))
