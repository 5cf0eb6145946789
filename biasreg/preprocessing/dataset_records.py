"""The records in a dataset's preprocessed folder: fingerprint, plans and folds, read with care."""

import logging
import re
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

from biasreg.core.dataset import Dataset
from biasreg.core.errors import PlansError, RecordError
from biasreg.core.parallel import map_cases
from biasreg.core.serialization import from_json, read_json, read_record, to_json, write_json
from biasreg.planning.fingerprint import FINGERPRINT_SCHEMA_VERSION, Fingerprint, dataset_hash, source_hash
from biasreg.planning.plans import PLANS_SCHEMA_VERSION, Plans
from biasreg.planning.splits import Fold, fits, make_splits

logger = logging.getLogger(__name__)

FINGERPRINT_FILE = "dataset_fingerprint.json"
SPLITS_FILE = "splits_final.json"
DATASET_FILE = "dataset.json"
PLANS_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


def read_fingerprint(folder: Path, reference: str) -> Fingerprint:
    """Read the fingerprint of a dataset.

    Args:
        folder: The dataset's preprocessed folder.
        reference: Dataset id or name, for the message.

    Returns:
        The fingerprint.

    Raises:
        PlansError: If there is none, or one of another version.
    """
    path = folder / FINGERPRINT_FILE
    if not path.is_file():
        raise PlansError(f"no fingerprint · {path} · run `biasreg_extract_fingerprint -d {reference}`")
    _check_schema(path, FINGERPRINT_SCHEMA_VERSION, f"biasreg_extract_fingerprint -d {reference}")
    return read_record(path, Fingerprint)


def read_plans(folder: Path, plans_name: str, reference: str) -> Plans:
    """Read the plans of a dataset.

    Args:
        folder: The dataset's preprocessed folder.
        plans_name: Name of the plans.
        reference: Dataset id or name, for the message.

    Returns:
        The plans.

    Raises:
        PlansError: If there are none, or ones of another version.
    """
    path = folder / f"{plans_name}.json"
    if not path.is_file():
        raise PlansError(f"no plans · {path} · run `biasreg_plan_and_preprocess -d {reference}`")
    _check_schema(path, PLANS_SCHEMA_VERSION, f"biasreg_plan_and_preprocess -d {reference}")
    return read_record(path, Plans)


def _check_schema(path: Path, version: int, command: str) -> None:
    data = read_json(path)
    found = data.get("schema_version") if isinstance(data, dict) else None
    if found != version:
        raise PlansError(f"written by another version (schema {found}, not {version}) · {path} · run `{command}`")


def check_plans_name(plans_name: str) -> None:
    """Refuse a name of plans that cannot name files.

    Args:
        plans_name: The name.

    Raises:
        PlansError: If it holds other characters than letters, digits, `-`, `_` and `.`, or is taken.
    """
    reserved = [Path(name).stem for name in (FINGERPRINT_FILE, SPLITS_FILE, DATASET_FILE)]
    if not PLANS_NAME.fullmatch(plans_name) or plans_name in reserved:
        raise PlansError(
            f"'{plans_name}' cannot be the name of plans · it names files: use letters, digits, '-', '_' and '.', "
            f"and none of {', '.join(reserved)}"
        )


def check_belongs(fingerprint: Fingerprint, dataset: Dataset, folder: Path, reference: str) -> None:
    """Refuse a fingerprint of other cases, or of another `dataset.json`; the files themselves are not read.

    Args:
        fingerprint: The fingerprint.
        dataset: The raw dataset.
        folder: The dataset's preprocessed folder, for the message.
        reference: Dataset id or name, for the message.

    Raises:
        PlansError: If they do not belong together.
    """
    known, present = ({case.identifier for case in cases} for cases in (fingerprint.cases, dataset.cases("Tr")))
    if known == present and fingerprint.dataset_hash == dataset_hash(dataset.json):
        return
    what = f"cases {', '.join(sorted(known ^ present))}" if known != present else "dataset.json"
    raise PlansError(
        f"the dataset has changed since its fingerprint was taken ({what}) · {folder / FINGERPRINT_FILE} · "
        f"run `biasreg_extract_fingerprint -d {reference}`, then plan again"
    )


def current_fingerprint(path: Path, dataset: Dataset, executor: Executor) -> Fingerprint | None:
    """Read the fingerprint if it still fits the dataset and all of its files.

    Args:
        path: The fingerprint's file.
        dataset: The raw dataset.
        executor: Where the files are hashed.

    Returns:
        The fingerprint; None if there is none, or it does not fit, or cannot be read.
    """
    try:
        fingerprint = read_record(path, Fingerprint)
    except RecordError:
        return None
    if (fingerprint.schema_version, fingerprint.dataset_hash) != (
        FINGERPRINT_SCHEMA_VERSION,
        dataset_hash(dataset.json),
    ):
        return None
    known = {case.identifier: case.source_hash for case in fingerprint.cases}
    cases = {case.identifier: (case,) for case in dataset.cases("Tr")}
    return fingerprint if known == map_cases(source_hash, cases, executor, "looking for changes") else None


def write_splits(path: Path, subjects: dict[str, str], pairs: Sequence[tuple[str, str]] = ()) -> None:
    """Write the folds, unless those that are there fit the cases; what does not fit is kept beside as `.bak`.

    Args:
        path: The file of the folds.
        subjects: Subject of each case identifier.
        pairs: Listed pairs, when the dataset trains on them alone.

    Raises:
        DatasetError: If there are fewer than two subjects.
    """
    folds = make_splits(subjects, pairs)
    if path.is_file():
        try:
            known = from_json(tuple[Fold, ...], read_json(path), where=str(path))
        except RecordError as error:
            logger.warning("the folds cannot be read and are made anew: %s", error)
        else:
            if fits(known, subjects):
                logger.info("folds kept: %s", path)
                return
            logger.warning("the folds do not fit the cases, or mix subjects: they are made anew (%s)", path)
        path.replace(path.with_name(f"{path.name}.bak"))
    write_json(path, [to_json(fold) for fold in folds])
