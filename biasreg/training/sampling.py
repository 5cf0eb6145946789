"""Which two cases make a pair, for training and for validation."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from biasreg.core.dataset_json import Pairing
from biasreg.planning.pairing import Pair, paired_cases, pairs_among

LABEL_DRAWS = 0.5  # of the draws begin with a label, where cases show different ones


class PairSampler:
    """Draws ordered pairs of cases, both directions alike, and never leaves the given cases.

    Subjects are drawn alike however many cases they have. Where cases show different labels, every second draw, on
    average, begins with a label, so that one that few cases show is not forgotten.

    Args:
        subjects: Subject of each case that may be drawn.
        pairing: `inter-subject` pairs two different subjects, `intra-subject` two cases of one subject, `listed` takes
            `listed` alone.
        listed: Pairs of a listed dataset; those with a case outside `subjects` are left out.
        shown: Classes that each case shows; a case that is left out shows none.

    Raises:
        DatasetError: If the cases hold no pair of this kind.
    """

    def __init__(
        self,
        subjects: Mapping[str, str],
        pairing: Pairing,
        listed: Iterable[Pair] = (),
        shown: Mapping[str, Collection[int]] | None = None,
    ) -> None:
        self.pairing = pairing
        self._subjects = {case: subjects[case] for case in sorted(subjects)}
        self._groups = self._grouped(self._subjects)
        self._listed = pairs_among(subjects, listed) if pairing == "listed" else ()
        self.cases = paired_cases(subjects, pairing, self._listed)
        self._pools = self._label_pools(shown or {})

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
        """Draw one (moving, fixed) pair; listed pairs uniformly, each direction with probability one half."""
        if self.pairing == "listed":
            first, second = self._listed[rng.integers(len(self._listed))]
            return (first, second) if rng.random() < 0.5 else (second, first)
        pool = self._pools[0]
        if len(self._pools) > 1 and rng.random() < LABEL_DRAWS:
            pool = self._pools[1 + rng.integers(len(self._pools) - 1)]
        if self.pairing == "intra-subject":
            cases = pool[rng.integers(len(pool))]
            first, second = rng.choice(len(cases), 2, replace=False)
            return cases[first], cases[second]
        moving, fixed = (pool[index] for index in rng.choice(len(pool), 2, replace=False))
        return moving[rng.integers(len(moving))], fixed[rng.integers(len(fixed))]

    def _grouped(self, cases: Iterable[str]) -> dict[str, list[str]]:
        """Sort cases by their subject."""
        groups: dict[str, list[str]] = {}
        for case in cases:
            groups.setdefault(self._subjects[case], []).append(case)
        return groups

    def _label_pools(self, shown: Mapping[str, Collection[int]]) -> list[list[list[str]]]:
        """List cases per subject to draw from: all of them, then, where they differ, those that show each label."""
        labels = sorted({label for case in self._subjects for label in shown.get(case, ())})
        showing = ([case for case in self._subjects if label in shown.get(case, ())] for label in labels)
        groups = [list(self._subjects), *showing]
        if all(len(group) == len(self._subjects) for group in groups):
            groups = groups[:1]
        pools = (list(self._grouped(group).values()) for group in groups)
        if self.pairing == "intra-subject":
            return [pool for each in pools if (pool := [cases for cases in each if len(cases) > 1])]
        return [pool for pool in pools if len(pool) > 1]


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
