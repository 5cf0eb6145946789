"""Which two cases make a pair, for training and for validation."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

import numpy as np

from biasreg.core.errors import DatasetError

Pairing = Literal["inter-subject", "intra-subject", "listed"]
Pair = tuple[str, str]  # case identifiers: (moving, fixed)

_NEEDS = {
    "inter-subject": "cases of two different subjects",
    "intra-subject": "two cases of one subject",
    "listed": "a listed pair (dataset.json, 'pairs') whose two cases are both among them",
}


class PairSampler:
    """Draws ordered pairs of cases, both directions alike, and never leaves the given cases.

    Args:
        subjects: Subject of each case that may be drawn.
        pairing: `inter-subject` pairs two different subjects, `intra-subject` two cases of one subject, `listed` takes
            `listed` alone.
        listed: Pairs of a listed dataset; those with a case outside `subjects` are left out.

    Raises:
        DatasetError: If the cases hold no pair of this kind.
    """

    def __init__(self, subjects: Mapping[str, str], pairing: Pairing, listed: Iterable[Pair] = ()) -> None:
        self.pairing = pairing
        self._subjects = {case: subjects[case] for case in sorted(subjects)}
        self._groups: dict[str, list[str]] = {}
        for case, subject in self._subjects.items():
            self._groups.setdefault(subject, []).append(case)
        inside = {
            (min(pair), max(pair)) for pair in listed if pair[0] != pair[1] and self._subjects.keys() >= set(pair)
        }
        self._listed = tuple(sorted(inside)) if pairing == "listed" else ()
        self.cases = tuple(case for case in self._subjects if self._has_partner(case))
        if not self.cases:
            raise DatasetError(
                f"{len(self._subjects)} case(s) of {len(self._groups)} subject(s) hold no pair to register · pairing "
                f"'{pairing}' of dataset.json needs {_NEEDS[pairing]} · add cases, or correct 'pairing', 'subjects' or "
                "'pairs' in dataset.json and plan again"
            )

    def _has_partner(self, case: str) -> bool:
        if self.pairing == "inter-subject":
            return len(self._groups) > 1
        if self.pairing == "intra-subject":
            return len(self._groups[self._subjects[case]]) > 1
        return any(case in pair for pair in self._listed)

    def partners(self, case: str) -> tuple[str, ...]:
        """Return the cases that `case` may be paired with, in order of their names."""
        subject = self._subjects[case]
        if self.pairing == "inter-subject":
            return tuple(other for other, its_subject in self._subjects.items() if its_subject != subject)
        if self.pairing == "intra-subject":
            return tuple(other for other in self._groups[subject] if other != case)
        return tuple(
            sorted(second if case == first else first for first, second in self._listed if case in (first, second))
        )

    def draw(self, rng: np.random.Generator) -> Pair:
        """Draw one (moving, fixed) pair: uniform over the cases for the moving image, then over its partners.

        Listed pairs are drawn uniformly, each direction with probability one half.
        """
        if self.pairing == "listed":
            first, second = self._listed[rng.integers(len(self._listed))]
            return (first, second) if rng.random() < 0.5 else (second, first)
        moving = self.cases[rng.integers(len(self.cases))]
        partners = self.partners(moving)
        return moving, partners[rng.integers(len(partners))]


def select_pairs(sampler: PairSampler, count: int, fixed_cases: Collection[str] | None = None) -> tuple[Pair, ...]:
    """Choose pairs to validate on: always the same ones, with every case taking part about equally often.

    Args:
        sampler: Knows which pairs there are.
        count: At most this many pairs.
        fixed_cases: When given, only pairs from outside these cases (moving) onto these cases (fixed) are chosen.

    Returns:
        Distinct (moving, fixed) pairs, fewer than `count` when there are no more.
    """
    uses: Counter[str] = Counter()
    chosen: dict[Pair, None] = {}  # a dictionary keeps the order
    candidates = [case for case in sampler.cases if fixed_cases is None or case in fixed_cases]
    while candidates and len(chosen) < count:
        fixed = min(candidates, key=lambda case: (uses[case], case))
        free = [
            other
            for other in sampler.partners(fixed)
            if (other, fixed) not in chosen and (fixed_cases is None or other not in fixed_cases)
        ]
        if not free:
            candidates.remove(fixed)
            continue
        moving = min(free, key=lambda case: (uses[case], (case, fixed)[::-1] in chosen, case))
        chosen[(moving, fixed)] = None
        uses.update((moving, fixed))
    return tuple(chosen)
