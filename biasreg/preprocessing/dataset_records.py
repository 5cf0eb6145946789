"""The records in a dataset's preprocessed folder: what fits the dataset is kept, anything else refused or made anew."""

import logging
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import Executor
from itertools import chain, count
from pathlib import Path

from biasreg.core.dataset import Dataset
from biasreg.core.dataset_json import DATASET_FILE
from biasreg.core.errors import DatasetError, PlansError, RecordError
from biasreg.core.parallel import map_cases
from biasreg.core.serialization import read_record, to_json, write_json
from biasreg.planning.files import SPLITS_FILE, read_folds, read_plans, read_versioned
from biasreg.planning.fingerprint import dataset_hash, source_hash
from biasreg.planning.fingerprint_records import FINGERPRINT_SCHEMA_VERSION, Fingerprint
from biasreg.planning.plans import Plans
from biasreg.planning.splits import Fold, check_folds, fits, make_splits

logger = logging.getLogger(__name__)

FINGERPRINT_FILE = "dataset_fingerprint.json"
FINGERPRINT_CACHE = "dataset_fingerprint_cache"
PLANS_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


def read_fingerprint(path: Path, remedy: str) -> Fingerprint:
    """Read a fingerprint.

    Args:
        path: Its file.
        remedy: What to do when there is none, or one of another version, for the message.

    Returns:
        The fingerprint.

    Raises:
        PlansError: If there is none, or one of another version.
        RecordError: If the file is damaged.
    """
    return read_versioned(Fingerprint, path, FINGERPRINT_SCHEMA_VERSION, "fingerprint", remedy)


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


def check_belongs(fingerprint: Fingerprint, dataset: Dataset, path: Path, remedy: str) -> None:
    """Refuse a fingerprint of other cases, or of another `dataset.json`; the files themselves are not read.

    Args:
        fingerprint: The fingerprint.
        dataset: The raw dataset.
        path: The fingerprint's file, for the message.
        remedy: What to do, for the message.

    Raises:
        PlansError: If they do not belong together.
    """
    known, present = ({case.identifier for case in cases} for cases in (fingerprint.cases, dataset.cases("Tr")))
    if known == present and fingerprint.dataset_hash == dataset_hash(dataset.json):
        return
    what = f"cases {', '.join(sorted(known ^ present))}" if known != present else "dataset.json"
    raise PlansError(f"the dataset has changed since its fingerprint was taken ({what}) · {path} · {remedy}")


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


def current_plans(path: Path) -> Plans | None:
    """Read plans that were made before, for what a user has added to them.

    Args:
        path: Their file.

    Returns:
        The plans; None if there are none, or ones that this version does not read (a copy is kept beside them then).
    """
    if not path.is_file():
        return None
    try:
        return read_plans(path, "")
    except (PlansError, RecordError) as error:
        backup = path.with_suffix(".json.bak")
        shutil.copyfile(path, backup)
        logger.warning("earlier plans cannot be read (%s): nothing is taken over from them (copy: %s)", error, backup)
        return None


def settle_folds(path: Path, dataset: Dataset) -> tuple[Fold, ...]:
    """Take the folds that are there if they fit the dataset, else make new ones; nothing is written.

    Args:
        path: The file of the folds; may be missing.
        dataset: The raw dataset.

    Returns:
        The folds.

    Raises:
        DatasetError: If the dataset cannot be split, or the training cases of a fold hold no pair.
    """
    subjects = {case.identifier: case.subject for case in dataset.cases("Tr")}
    pairing = dataset.json.pairing
    pairs = [(pair.moving, pair.fixed) for pair in dataset.json.pairs] if pairing == "listed" else []
    known = _known_folds(path)
    if known is None or not fits(known, subjects):
        folds = make_splits(subjects, pairs)
        check_folds(folds, subjects, pairing, pairs)
        return folds
    try:
        check_folds(known, subjects, pairing, pairs)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    return known


def write_folds(path: Path, folds: Sequence[Fold]) -> None:
    """Write folds; other ones that are there are kept beside as `.bak`, or `.bak2` and so on where that is taken.

    Args:
        path: The file of the folds.
        folds: The folds.
    """
    if path.is_file():
        if _known_folds(path) == folds:
            logger.info("folds kept: %s", path)
            return
        names = (path.with_name(f"{path.name}.bak{number or ''}") for number in chain([0], count(2)))
        backup = next(name for name in names if not name.exists())
        path.replace(backup)
        logger.warning("the folds that were there are damaged or do not fit the cases: made anew (old: %s)", backup)
    write_json(path, [to_json(fold) for fold in folds])


def _known_folds(path: Path) -> tuple[Fold, ...] | None:
    try:
        return read_folds(path)
    except RecordError:
        return None
