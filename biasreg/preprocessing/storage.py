"""Preprocessed cases on disk: uncompressed arrays that training maps into memory, and one small record per case.

```
<preprocessed>/DatasetNNN_Name/<plans>_<configuration>/
  preprocessing.json   which plans the folder was made with
  reference.nii.gz, reference_focus.nii.gz     what all are aligned to, if anything (reference_files.py)
  <case>.npy           image, float16, (C, X, Y, Z), in [0, 1]
  <case>_seg.npy       classes, uint8 or uint16, (X, Y, Z); only of cases with labels
  <case>_mask.npy      where the image has values, and where of that the user's mask is 0, uint8, (X, Y, Z)
  <case>.json          the case's record; written last, so that it marks the case as complete
```
"""

from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np

from biasreg.core.errors import PlansError, RecordError
from biasreg.core.geometry import Geometry
from biasreg.core.serialization import atomic_write, content_hash, read_record, write_record
from biasreg.planning.plans import PreprocessingPlans
from biasreg.preprocessing.reference_files import FOCUS_FILE, REFERENCE_FILE

STAMP_FILE = "preprocessing.json"
LAYOUT = 2  # of the arrays of a case
OUTSIDE, INSIDE, EXCLUDED = 0, 1, 2  # a mask's values: beyond the field of view; in it; in it, but not to be compared
IMAGE, MASK, LABELS = ".npy", "_mask.npy", "_seg.npy"  # what the arrays of a case end in
ARRAY_ERRORS = (ValueError, EOFError, TypeError, TokenError)  # of np.load; the last two for headers of random bytes

Matrix = tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class PreprocessingStamp:
    """Which plans a folder of preprocessed cases was made with.

    Attributes:
        plans_hash: Content hash of the `PreprocessingPlans`.
        reference_hash: Hashes of the raw files of the case that all are aligned to, when pre-alignment is affine.
        layout: What the arrays mean. In layout 1 a mask was 0 where the user's mask is 0, too.
    """

    plans_hash: str
    reference_hash: str | None = None
    layout: int = 1


@dataclass(frozen=True)
class StoredCase:
    """Record of one preprocessed case.

    Attributes:
        identifier: Case identifier.
        subject: Subject of the case.
        modality: Modality of the case.
        annotated: Whether the case has a label map.
        label_presence: Classes (1, 2, ...) that occur on the canonical grid.
        frame: (4, 4) matrix from canonical coordinates (mm) to the case's world (RAS mm).
        geometry: Grid of the raw image.
        foreground_outside: Fraction of what the grid is to cover, anatomy or labels, that lies outside of it.
        source_hash: Hash of the raw files.
    """

    identifier: str
    subject: str
    modality: str
    annotated: bool
    label_presence: tuple[int, ...]
    frame: Matrix
    geometry: Geometry
    foreground_outside: float
    source_hash: str


def configuration_folder(dataset_folder: Path, plans_name: str, configuration: str) -> Path:
    """Name the folder of the preprocessed cases of one configuration.

    Args:
        dataset_folder: Folder of the dataset under the root of preprocessed data.
        plans_name: Name of the plans.
        configuration: Name of the configuration.

    Returns:
        The folder.
    """
    return dataset_folder / f"{plans_name}_{configuration}"


def write_stamp(folder: Path, plans: PreprocessingPlans, reference_hash: str | None = None) -> None:
    """Note in a folder which plans it is made with.

    Args:
        folder: Folder of preprocessed cases.
        plans: The plans.
        reference_hash: Hashes of the raw files of the case that all are aligned to, when pre-alignment is affine.
    """
    write_record(folder / STAMP_FILE, PreprocessingStamp(content_hash(plans), reference_hash, LAYOUT))


def is_stamped(folder: Path, plans: PreprocessingPlans, reference_hash: str | None = None) -> bool:
    """Tell whether a folder was made with these plans, and holds what cases hold now.

    Args:
        folder: Folder of preprocessed cases.
        plans: The plans.
        reference_hash: If given, the reference must be made of those files.

    Returns:
        False also when the folder has no stamp.
    """
    path = folder / STAMP_FILE
    if not path.is_file():
        return False
    stamp = read_record(path, PreprocessingStamp)
    as_planned = (stamp.plans_hash, stamp.layout) == (content_hash(plans), LAYOUT)
    return as_planned and reference_hash in (None, stamp.reference_hash)


def check_stamp(folder: Path, plans: PreprocessingPlans, remedy: str) -> None:
    """Refuse a folder that was not made with these plans.

    Args:
        folder: Folder of preprocessed cases.
        plans: The plans.
        remedy: What makes the folder anew, for the message.

    Raises:
        PlansError: If the folder is missing or was made with other plans.
    """
    if not (folder / STAMP_FILE).is_file():
        raise PlansError(f"no preprocessed cases · {folder} · {remedy}")
    if not is_stamped(folder, plans):
        raise PlansError(f"the cases were made with other plans, or by an earlier version · {folder} · {remedy}")


def clear_folder(folder: Path) -> None:
    """Remove all preprocessed cases from a folder, and nothing that is not ours.

    Args:
        folder: Folder of preprocessed cases; may be missing. Its stamp goes last, so that what is left after an
            interruption is still known for what it is.

    Raises:
        PlansError: If the folder holds files but no stamp.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / STAMP_FILE).is_file():
        raise PlansError(
            f"the folder holds files but no {STAMP_FILE}, so it was not made here · {folder} · move it away"
        )
    patterns = ("*.npy", "*.json", *(f"*{name}" for name in (REFERENCE_FILE, FOCUS_FILE)))
    ours = [path for pattern in patterns for path in folder.glob(pattern)]
    for path in sorted(ours, key=lambda path: path.name == STAMP_FILE):
        path.unlink()


def write_case(
    folder: Path, record: StoredCase, image: np.ndarray, mask: np.ndarray, labels: np.ndarray | None
) -> None:
    """Store a preprocessed case; its record comes last and marks it as complete.

    Args:
        folder: Folder of preprocessed cases.
        record: The case's record.
        image: (C, X, Y, Z) in [0, 1].
        mask: (X, Y, Z), `OUTSIDE`, `INSIDE` or `EXCLUDED`.
        labels: (X, Y, Z) classes, or None.

    Raises:
        OSError: If the disk is full or not writable; no half file is left.
    """
    record_path, labels_path = (folder / f"{record.identifier}{ending}" for ending in (".json", LABELS))
    record_path.unlink(missing_ok=True)  # while the arrays change, the case is not complete
    _write_array(folder / f"{record.identifier}{IMAGE}", image.astype(np.float16))
    _write_array(folder / f"{record.identifier}{MASK}", mask.astype(np.uint8))
    if labels is None:
        labels_path.unlink(missing_ok=True)
    else:
        _write_array(labels_path, labels)
    write_record(record_path, record)


def find_stored_case(folder: Path, identifier: str) -> StoredCase | None:
    """Read the record of a preprocessed case if all of its files are there, and as long as they say.

    Args:
        folder: Folder of preprocessed cases.
        identifier: Case identifier.

    Returns:
        The record; None if a file is missing or cut off, or the record is damaged or of another version.
    """
    try:
        record = read_record(folder / f"{identifier}.json", StoredCase)
    except RecordError:
        return None
    return record if all(_is_whole(path) for path in _array_files(folder, record)) else None


def damaged_arrays(folder: Path, identifier: str) -> tuple[Path, ...]:
    """Find the arrays of a case that are there but cut off, or no arrays; their values are not read.

    Args:
        folder: Folder of preprocessed cases.
        identifier: Case identifier.

    Returns:
        Their files.
    """
    paths = [folder / f"{identifier}{ending}" for ending in (IMAGE, MASK, LABELS)]
    return tuple(path for path in paths if path.is_file() and not _is_whole(path))


def read_stored_case(folder: Path, identifier: str, remedy: str) -> StoredCase:
    """Read the record of a preprocessed case, and see that its arrays are whole; their values are not read.

    Args:
        folder: Folder of preprocessed cases.
        identifier: Case identifier.
        remedy: What makes the case anew, for the message.

    Returns:
        The record.

    Raises:
        PlansError: If the case, or an array of it, is missing or damaged.
    """
    path = folder / f"{identifier}.json"
    if not path.is_file():
        raise PlansError(f"case {identifier} is not preprocessed · {path} · {remedy}")
    record = read_record(path, StoredCase)
    for array in _array_files(folder, record):
        _load_array(array, remedy)
    return record


def load_image(folder: Path, identifier: str) -> np.ndarray:
    """Map a case's image into memory: (C, X, Y, Z), float16, in [0, 1]."""
    return _load_array(folder / f"{identifier}{IMAGE}")


def load_mask(folder: Path, identifier: str) -> np.ndarray:
    """Map a case's mask into memory: (X, Y, Z), uint8: `OUTSIDE`, `INSIDE` or `EXCLUDED`."""
    return _load_array(folder / f"{identifier}{MASK}")


def load_labels(folder: Path, identifier: str) -> np.ndarray:
    """Map a case's classes into memory: (X, Y, Z), zeros for a case without labels."""
    path = folder / f"{identifier}{LABELS}"
    return _load_array(path) if path.is_file() else np.zeros(load_mask(folder, identifier).shape, dtype=np.uint8)


def _write_array(path: Path, array: np.ndarray) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.ascontiguousarray(array))


def _load_array(path: Path, remedy: str = "run `biasreg_preprocess` again") -> np.ndarray:
    """Map an array into memory, which fails at once if the file is shorter than its header says."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r")
    except OSError as error:
        raise PlansError(f"an array cannot be read: {error.strerror} · {path} · {remedy}") from error
    except ARRAY_ERRORS as error:
        raise PlansError(f"an array is cut off or damaged ({error}) · {path} · {remedy}") from error
    return array


def _is_whole(path: Path) -> bool:
    try:
        _load_array(path)
    except PlansError:
        return False
    return True


def _array_files(folder: Path, record: StoredCase) -> list[Path]:
    endings = (IMAGE, MASK, LABELS) if record.annotated else (IMAGE, MASK)
    return [folder / f"{record.identifier}{ending}" for ending in endings]
