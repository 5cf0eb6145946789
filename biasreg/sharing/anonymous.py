"""Plans, dataset.json and identities without the names of cases, which may name patients.

Fields are taken, not removed: what is not known to be free of names stays at home.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from biasreg.core.dataset_json import DatasetJson
from biasreg.core.errors import ArchiveError
from biasreg.core.serialization import read_json
from biasreg.network.checkpoint import Checkpoint, Identity
from biasreg.planning.plans import Configuration, Plans

REFERENCE_CASE = "reference"
"""Name of the reference case in plans that were given away."""


def case_names(dataset: DatasetJson, configuration: Configuration, checkpoints: Iterable[Checkpoint]) -> set[str]:
    """Gather the names of cases and subjects that a model's folder knows.

    Args:
        dataset: The model's `dataset.json`.
        configuration: The model's configuration.
        checkpoints: The checkpoints of its folds.

    Returns:
        The names.
    """
    pairs = [(pair.moving, pair.fixed) for pair in (*dataset.pairs, *dataset.test_pairs)]
    for checkpoint in checkpoints:
        validated = (checkpoint.progress.get("best") or {}).get("pairs", ())
        pairs += [(pair["moving"], pair["fixed"]) for pair in validated]
    names = {name for pair in pairs for name in pair} | set(dataset.subjects) | set(dataset.subjects.values())
    names |= {*dataset.modalities, configuration.preprocessing.reference_case or REFERENCE_CASE}
    return names - {REFERENCE_CASE}  # what a model that was given away before calls it


def anonymous_dataset(dataset: DatasetJson) -> DatasetJson:
    """Keep what is said of the dataset as a whole.

    Args:
        dataset: The model's `dataset.json`.

    Returns:
        The same without subjects, pairs, test pairs, and modalities of cases.
    """
    return DatasetJson(
        name=dataset.name,
        channel_names=dataset.channel_names,
        labels=dataset.labels,
        file_ending=dataset.file_ending,
        pairing=dataset.pairing,
        licence=dataset.licence,
        reference=dataset.reference,
        description=dataset.description,
    )


def anonymous_configuration(configuration: Configuration) -> Configuration:
    """Call the reference case `reference`, if there is one.

    Args:
        configuration: The model's configuration.

    Returns:
        The configuration with another content hash, therefore.
    """
    plans = configuration.preprocessing
    name = None if plans.reference_case is None else REFERENCE_CASE
    return replace(configuration, preprocessing=replace(plans, reference_case=name))


def anonymous_plans(plans: Plans, name: str, configuration: Configuration, names: Iterable[str]) -> Plans:
    """Keep one configuration of plans, and its reasons without the names of cases.

    Args:
        plans: The model's plans.
        name: Name of the configuration.
        configuration: What is written for it, already anonymous.
        names: Names of cases and subjects.

    Returns:
        The plans.
    """
    reasons = {rule: _without(reason, names) for rule, reason in plans.why.get(name, {}).items()}
    return replace(plans, default_configuration=name, configurations={name: configuration}, why={name: reasons})


def anonymous_identity(identity: Identity, configuration: Configuration) -> Identity:
    """Name the model, and not what it was trained on.

    Args:
        identity: Identity of a checkpoint.
        configuration: The configuration that is given away.

    Returns:
        The identity without the hash of the fold's cases, by which guessed names could be confirmed.
    """
    return replace(identity, configuration=configuration, run=replace(identity.run, cases_hash=""))


def check_ranges(path: Path, names: Iterable[str]) -> None:
    """Refuse a file of aggregated facts that names a case.

    Args:
        path: The file, JSON.
        names: Names of cases and subjects.

    Raises:
        ArchiveError: A case is named.
    """
    known = set(names)
    if found := sorted(known.intersection(_texts(read_json(path)))):
        raise ArchiveError(
            f"{path.name} names {len(found)} case(s), {found[0]} for one, and would give them away · {path} · move the "
            "file away, then export again"
        )


def _without(text: str, names: Iterable[str]) -> str:
    """Replace the names of cases; longer ones first, of which shorter ones are parts.

    A name of digits alone may be any number, which would be lost: such a reason is left out as a whole.
    """
    for name in sorted(names, key=len, reverse=True):
        found = re.compile(rf"(?<![\w.-]){re.escape(name)}(?![\w-])")
        if name.isdecimal() and found.search(text):
            return "left out, for it may name a case"
        text = found.sub(f"the {REFERENCE_CASE} case", text)
    return text


def _texts(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield key
            yield from _texts(value)
    elif isinstance(data, list):
        for value in data:
            yield from _texts(value)
