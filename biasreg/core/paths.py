"""Where raw data, preprocessed data and results lie, and which folder a dataset's id or name means."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from biasreg.core.errors import DatasetError, ImageError, InputError

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
    given = {"raw": raw, "preprocessed": preprocessed, "results": results}
    found = {root: _find_root(root, path, environ, folder) for root, path in given.items()}
    missing = [root for root, path in found.items() if path is None]
    if missing:
        raise _unknown_roots(missing, folder)
    return Roots(**{root: path for root, path in found.items() if path is not None})


def absolute_roots(roots: Roots) -> Roots:
    """Make the roots independent of the working folder.

    Args:
        roots: The roots.

    Returns:
        The same folders.
    """
    return Roots(roots.raw.absolute(), roots.preprocessed.absolute(), roots.results.absolute())


def resolve_results(environ: Mapping[str, str], *, results: Path | str | None = None, folder: Path = Path(".")) -> Path:
    """Find the root of the results alone, all that prediction needs; as `resolve_roots` does.

    Args:
        environ: The environment variables.
        results: The root, when the user gave it.
        folder: Where `biasreg_data` is looked for.

    Raises:
        DatasetError: The root is given by none of these.
    """
    found = _find_root("results", results, environ, folder)
    if found is None:
        raise _unknown_roots(["results"], folder)
    return found


def _find_root(root: str, given: Path | str | None, environ: Mapping[str, str], folder: Path) -> Path | None:
    default = folder / DEFAULT_FOLDER
    if path := given or environ.get(f"biasreg_{root}"):
        return Path(path)
    if common := environ.get(COMMON_ROOT_VARIABLE):
        return Path(common) / root
    return default / root if default.is_dir() else None


def _unknown_roots(missing: Sequence[str], folder: Path) -> DatasetError:
    flags = ", ".join(f"--{root}" for root in missing)
    variables = ", ".join(f"biasreg_{root}" for root in missing)
    many = "s" if len(missing) > 1 else ""
    return DatasetError(
        f"no folder is known for: {', '.join(missing)}; give {flags}, or set the environment variable{many}"
        f" {variables}, or set {COMMON_ROOT_VARIABLE} to a folder that holds raw, preprocessed and results, or make"
        f" the folder {(folder / DEFAULT_FOLDER).absolute()}"
    )


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


def check_readable(path: Path) -> None:
    """Refuse a file that cannot be opened, so that no reader takes it for damaged.

    Args:
        path: The file.

    Raises:
        ImageError: It is missing, is a folder, or may not be read.
    """
    try:
        with path.open("rb"):
            return
    except FileNotFoundError:
        raise ImageError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: is a folder, not a file; rename or remove it") from None
    except PermissionError:
        raise ImageError(f"{path}: permission denied; allow yourself to read it (chmod u+r)") from None


def check_writable(folder: Path, advice: str) -> None:
    """Refuse a folder that files cannot be written to, before any work is done for it; nothing is made.

    Args:
        folder: The folder; where it is missing, the nearest one above that exists counts.
        advice: What to do instead, for the message.

    Raises:
        InputError: It, or the nearest one above, is a file or may not be written to.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    if not existing.is_dir():
        reason = f"{existing} is a file"
    elif not os.access(existing, os.W_OK | os.X_OK):
        reason = f"permission denied in {existing}"
    else:
        return
    raise InputError(f"nothing can be written to {folder}: {reason} · {advice}")


def _fits(reference: str, full_name: str) -> bool:
    number, name = split_dataset_name(full_name)
    by_number = reference.isdecimal() and int(reference) == number
    by_prefix = re.fullmatch(r"Dataset(\d+)", reference)
    return by_number or name == reference or (by_prefix is not None and int(by_prefix[1]) == number)
