"""The files that planning leaves to later steps: their names, how they are read, and the commands that make them."""

import shlex
from pathlib import Path
from typing import TypeVar

from biasreg.core.errors import PlansError
from biasreg.core.serialization import from_json, read_json
from biasreg.planning.plans import DEFAULT_PLANS_NAME, PLANS_SCHEMA_VERSION, Configuration, Plans
from biasreg.planning.splits import Fold

Record = TypeVar("Record")

SPLITS_FILE = "splits_final.json"
RANGES_FILE = "data_ranges.json"
PLANS_FILE = "plans.json"  # of a trained model; the plans of a dataset are called by their own name


def read_plans(path: Path, remedy: str) -> Plans:
    """Read plans.

    Args:
        path: Their file.
        remedy: What to do when there are none, or ones of another version, for the message.

    Returns:
        The plans.

    Raises:
        PlansError: If there are none, or ones of another version.
        RecordError: If the file is damaged.
    """
    return read_versioned(Plans, path, PLANS_SCHEMA_VERSION, f"plans '{path.stem}'", remedy)


def read_versioned(cls: type[Record], path: Path, version: int, name: str, remedy: str) -> Record:
    """Read a record, if its layout is of the version that this biasreg reads.

    Args:
        cls: The record's class.
        path: Its file.
        version: Version of its layout, under `schema_version`.
        name: What it is, for the message.
        remedy: What to do when it is missing or of another version, for the message.

    Returns:
        The record.

    Raises:
        PlansError: If there is no such file, or its record has another version, or none.
        RecordError: If the file is damaged.
    """
    if not path.is_file():
        raise PlansError(f"no {name} · {path} · {remedy}")
    data = read_json(path)
    found = data.get("schema_version") if isinstance(data, dict) else None
    if found != version:
        raise PlansError(
            f"written by another version of biasreg: schema version {found}, this biasreg reads version {version} · "
            f"{path} · {remedy}"
        )
    return from_json(cls, data, where=str(path))


def read_dataset_plans(folder: Path, plans_name: str, dataset: str) -> Plans:
    """Read the plans of a dataset.

    Args:
        folder: The dataset's preprocessed folder.
        plans_name: Name of the plans.
        dataset: Dataset id or name, for messages.

    Returns:
        The plans.

    Raises:
        PlansError: If there are none, ones of another version, or ones that call themselves otherwise.
        RecordError: If the file is damaged.
    """
    path = folder / f"{plans_name}.json"
    plans = read_plans(path, f"run `{command_line('biasreg_plan_and_preprocess', dataset, plans_name)}`")
    if plans.plans_name != plans_name:
        raise PlansError(
            f"the plans are called '{plans.plans_name}', their file '{plans_name}' · {path} · give both one name: "
            "cases and models of other plans lie under theirs"
        )
    return plans


def configuration_of(plans: Plans, name: str, folder: Path) -> Configuration:
    """Take a configuration by its name.

    Args:
        plans: The plans.
        name: Name of the configuration.
        folder: Folder of the plans, for the message.

    Returns:
        The configuration.

    Raises:
        PlansError: If the plans have none of that name.
    """
    if name not in plans.configurations:
        known = ", ".join(plans.configurations)
        raise PlansError(f"no configuration '{name}' in {folder / plans.plans_name}.json · there is: {known}")
    return plans.configurations[name]


def read_folds(path: Path) -> tuple[Fold, ...]:
    """Read the folds of a dataset.

    Args:
        path: Their file.

    Returns:
        The folds.

    Raises:
        RecordError: If the file is missing or damaged.
    """
    return from_json(tuple[Fold, ...], read_json(path), where=str(path))


def command_line(command: str, dataset: str, plans_name: str = DEFAULT_PLANS_NAME) -> str:
    """Write a command before training as a user has to type it, for messages.

    Args:
        command: Name of the command.
        dataset: Dataset id or name.
        plans_name: Name of the plans.

    Returns:
        The command with its options, but for a default one.
    """
    named = [] if plans_name == DEFAULT_PLANS_NAME else ["-p", plans_name]
    return shlex.join([command, "-d", dataset, *named])
