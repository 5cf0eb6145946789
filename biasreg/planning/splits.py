"""Cross-validation folds that never share a subject."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from biasreg.core.dataset_json import Pairing
from biasreg.core.errors import DatasetError
from biasreg.planning.pairing import Pair, paired_cases

DEFAULT_FOLDS = 5
SPLIT_SEED = 12345  # the same seed as nnU-Net's splits, so that folds are familiar


@dataclass(frozen=True)
class Fold:
    """Case identifiers of one fold.

    Attributes:
        train: Cases that training may use.
        validation: Cases of subjects that training never sees.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]


def fits(folds: Sequence[Fold], subjects: Mapping[str, str]) -> bool:
    """Tell whether folds are of these cases and keep subjects apart.

    Args:
        folds: The folds.
        subjects: Subject of each case identifier.

    Returns:
        False also if a case is in no fold, or a fold has nothing to train on.
    """
    if {case for fold in folds for case in fold.train + fold.validation} != set(subjects):
        return False
    groups = [[{subjects[case] for case in part} for part in (fold.train, fold.validation)] for fold in folds]
    return all(train and not train & validation for train, validation in groups)


def make_splits(
    subjects: Mapping[str, str], pairs: Sequence[Pair] = (), folds: int = DEFAULT_FOLDS
) -> tuple[Fold, ...]:
    """Split cases into folds by subject; subjects that a listed pair joins stay together.

    Args:
        subjects: Subject of each case identifier.
        pairs: Listed pairs of cases, when the dataset trains on them alone.
        folds: Number of folds; fewer when there are fewer subjects.

    Returns:
        The folds; every case is in `validation` of exactly one.

    Raises:
        DatasetError: If there are fewer than two subjects, or pairs join all of them.
    """
    count = len(set(subjects.values()))
    subjects = _joined(subjects, pairs)
    unique = sorted(set(subjects.values()))
    if len(unique) < 2:
        joined = ", all of them joined by the listed 'pairs' of dataset.json," if count > 1 else ""
        raise DatasetError(
            f"a dataset of {count} subject(s){joined} cannot be split · a fold needs other subjects to validate on · "
            "add cases, or correct 'subjects' or 'pairs' in dataset.json"
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(len(unique))
    groups = [{unique[index] for index in part} for part in np.array_split(order, min(folds, len(unique)))]
    return tuple(
        Fold(
            train=tuple(sorted(case for case, subject in subjects.items() if subject not in group)),
            validation=tuple(sorted(case for case, subject in subjects.items() if subject in group)),
        )
        for group in groups
    )


def check_folds(folds: Sequence[Fold], subjects: Mapping[str, str], pairing: Pairing, pairs: Sequence[Pair]) -> None:
    """Refuse folds that cannot be trained on.

    Args:
        folds: The folds.
        subjects: Subject of each case identifier.
        pairing: Pairing of the dataset.
        pairs: Listed pairs of cases, when the dataset trains on them alone.

    Raises:
        DatasetError: If the training cases of a fold hold no pair.
    """
    for number, fold in enumerate(folds):
        try:
            paired_cases({case: subjects[case] for case in fold.train}, pairing, pairs)
        except DatasetError as error:
            raise DatasetError(f"fold {number} of {len(folds)} cannot be trained: its {error}") from None


def _joined(subjects: Mapping[str, str], pairs: Sequence[Pair]) -> dict[str, str]:
    """Give all subjects that pairs join, directly or through others, one name."""
    joined = dict(subjects)
    for first, second in pairs:
        kept, renamed = sorted((joined[first], joined[second]))
        joined = {case: kept if subject == renamed else subject for case, subject in joined.items()}
    return joined
