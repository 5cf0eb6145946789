"""Which cases make a pair: what planning checks and training draws from."""

from collections import Counter
from collections.abc import Iterable, Mapping

from biasreg.core.dataset_json import Pairing
from biasreg.core.errors import DatasetError

Pair = tuple[str, str]  # case identifiers: (moving, fixed)

_NEEDS = {
    "inter-subject": "cases of two different subjects",
    "intra-subject": "two cases of one subject",
    "listed": "a listed pair (dataset.json, 'pairs') whose two cases are both among them",
}


def pairs_among(cases: Iterable[str], listed: Iterable[Pair]) -> tuple[Pair, ...]:
    """Keep the listed pairs whose two cases are among the given ones.

    Args:
        cases: Case identifiers.
        listed: Pairs of case identifiers.

    Returns:
        Each pair once, whichever its direction, its cases and the pairs sorted.
    """
    known = set(cases)
    return tuple(sorted({(min(pair), max(pair)) for pair in listed if pair[0] != pair[1] and known >= set(pair)}))


def paired_cases(subjects: Mapping[str, str], pairing: Pairing, listed: Iterable[Pair] = ()) -> tuple[str, ...]:
    """Find the cases that have another one to be paired with.

    Args:
        subjects: Subject of each case that may be paired.
        pairing: `inter-subject` pairs two different subjects, `intra-subject` two cases of one subject, `listed` takes
            `listed` alone.
        listed: Pairs of a listed dataset; those with a case outside `subjects` do not count.

    Returns:
        Their identifiers, sorted; at least two.

    Raises:
        DatasetError: If the cases hold no pair of this kind.
    """
    sizes = Counter(subjects.values())
    if pairing == "listed":
        found = {case for pair in pairs_among(subjects, listed) for case in pair}
    elif pairing == "intra-subject":
        found = {case for case, subject in subjects.items() if sizes[subject] > 1}
    else:
        found = set(subjects) if len(sizes) > 1 else set()
    if not found:
        raise DatasetError(
            f"{len(subjects)} case(s) of {len(sizes)} subject(s) hold no pair to register · pairing '{pairing}' of "
            f"dataset.json needs {_NEEDS[pairing]} · add cases, or correct 'pairing', 'subjects' or 'pairs' in "
            "dataset.json and plan again"
        )
    return tuple(sorted(found))
