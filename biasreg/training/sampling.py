"""Which two cases make a pair, for training and for validation."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from biasreg.core.dataset_json import Pairing
from biasreg.planning.pairing import Pair, paired_cases, pairs_among


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
        self._listed = pairs_among(subjects, listed) if pairing == "listed" else ()
        self.cases = paired_cases(subjects, pairing, self._listed)

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
