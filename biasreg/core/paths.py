"""Where raw data, preprocessed data and results lie, and which folder a dataset's id or name means."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from biasreg.core.errors import DatasetError

DATASET_NAME = re.compile(r"Dataset(\d{3,})_(.+)")
"""A dataset folder: an id of three or more digits, and a name."""

COMMON_ROOT_VARIABLE = "BIASREG_ROOT"
DEFAULT_FOLDER = "biasreg_data"


@dataclass(frozen=True)
class Roots:
    """The three folders that everything lies in.

    Attributes:
        raw: Holds the raw datasets.
        preprocessed: Holds fingerprints, plans and preprocessed cases.
        results: Holds trained models and evaluations.
    """

    raw: Path
    preprocessed: Path
    results: Path


def resolve_roots(
    environ: Mapping[str, str],
    *,
    raw: Path | str | None = None,
    preprocessed: Path | str | None = None,
    results: Path | str | None = None,
    folder: Path = Path("."),
) -> Roots:
    """Find the three roots.

    For each: the argument, else the variable `biasreg_raw` (`…_preprocessed`, `…_results`), else the sub-folder of
    `BIASREG_ROOT`, else that of `biasreg_data` in `folder` if that exists.

    Args:
        environ: The environment variables.
        raw: Root of the raw datasets, when the user gave it.
        preprocessed: Root of the preprocessed data, when the user gave it.
        results: Root of the results, when the user gave it.
        folder: Where `biasreg_data` is looked for.

    Raises:
        DatasetError: A root is given by none of these.
    """
    common = environ.get(COMMON_ROOT_VARIABLE)
    default = folder / DEFAULT_FOLDER
    found: dict[str, Path] = {}
    given = {"raw": raw, "preprocessed": preprocessed, "results": results}
    for root in (field.name for field in fields(Roots)):
        if path := given[root] or environ.get(f"biasreg_{root}"):
            found[root] = Path(path)
        elif common:
            found[root] = Path(common) / root
        elif default.is_dir():
            found[root] = default / root
    missing = [root for root in given if root not in found]
    if missing:
        flags = ", ".join(f"--{root}" for root in missing)
        variables = ", ".join(f"biasreg_{root}" for root in missing)
        raise DatasetError(
            f"no folder is known for: {', '.join(missing)}; give {flags}, or set the environment variables {variables},"
            f" or set {COMMON_ROOT_VARIABLE} to a folder that holds raw, preprocessed and results, or make the folder"
            f" {default.absolute()}"
        )
    return Roots(**found)


def split_dataset_name(full_name: str) -> tuple[int, str]:
    """Split a full name such as `Dataset501_Hippocampus` into id and name.

    Raises:
        DatasetError: It is no such name.
    """
    match = DATASET_NAME.fullmatch(full_name)
    if match is None:
        raise DatasetError(
            f"{full_name}: a dataset folder is named DatasetNNN_Name, for example Dataset501_Hippocampus"
        )
    return int(match[1]), match[2]


def find_dataset(reference: str, folder: Path) -> Path:
    """Find the dataset folder that an id or a name means.

    Args:
        reference: `501`, `Dataset501_Hippocampus` or `Hippocampus`.
        folder: One of the roots.

    Raises:
        DatasetError: No dataset fits, or several do.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder, so dataset {reference} cannot be looked up; make it")
    present = sorted(item for item in folder.iterdir() if item.is_dir() and DATASET_NAME.fullmatch(item.name))
    exact = [item for item in present if item.name == reference]
    fitting = exact or [item for item in present if _fits(reference, item.name)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(item.name for item in fitting)
        raise DatasetError(f"{folder}: dataset {reference} is ambiguous: {names}; give the full name")
    names = ", ".join(item.name for item in present) or "no dataset"
    raise DatasetError(f"{folder}: there is no dataset {reference}; the folder holds: {names}")


def _fits(reference: str, full_name: str) -> bool:
    number, name = split_dataset_name(full_name)
    by_number = reference.isdecimal() and int(reference) == number
    by_prefix = re.fullmatch(r"Dataset(\d+)", reference)
    return by_number or name == reference or (by_prefix is not None and int(by_prefix[1]) == number)
