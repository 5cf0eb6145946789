"""Room on the disk for preprocessed cases, reckoned before the first one is written."""

import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from biasreg.core.dataset import Case
from biasreg.core.errors import InputError
from biasreg.planning.plans import PreprocessingPlans
from biasreg.preprocessing.resampling import class_type
from biasreg.preprocessing.storage import IMAGE, LABELS, MASK

logger = logging.getLogger(__name__)

OVERHEAD_BYTES = 4096  # headers of the arrays, and the record
HALF_WRITTEN = re.compile(r"\.[0-9a-f]{8}-.+\.(npy|json)")  # as `core.serialization.atomic_write` names them
UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def case_bytes(plans: PreprocessingPlans, *, labelled: bool) -> int:
    """Reckon what a preprocessed case takes.

    Args:
        plans: The preprocessing plans.
        labelled: Whether it has a label map.

    Returns:
        Bytes.
    """
    image = np.dtype(np.float16).itemsize * len(plans.normalization)
    mask = np.dtype(np.uint8).itemsize
    classes = class_type(len(plans.label_values)).itemsize if labelled else 0
    return int(np.prod(plans.patch_size)) * (image + mask + classes) + OVERHEAD_BYTES


def remove_half_written(folder: Path) -> None:
    """Remove what a run that was killed had begun to write; no file of a complete case is one.

    Args:
        folder: Folder of preprocessed cases, which no other run writes to.
    """
    for path in folder.iterdir():
        if HALF_WRITTEN.fullmatch(path.name):
            logger.info("removing what a killed run left half written: %s", path)
            path.unlink(missing_ok=True)


def check_room(folder: Path, cases: Mapping[str, Case], plans: PreprocessingPlans) -> None:
    """Say how much the cases that are still to be made will take, and refuse to begin where they cannot fit.

    What they replace counts as free.

    Args:
        folder: Where they go; exists.
        cases: The cases that are still to be made.
        plans: The preprocessing plans.

    Raises:
        InputError: If the file system has less room than they need.
    """
    if not cases:
        return
    needed = sum(case_bytes(plans, labelled=case.labels is not None) for case in cases.values())
    paths = (folder / f"{name}{ending}" for name in cases for ending in (IMAGE, MASK, LABELS))
    replaced = sum(path.stat().st_size for path in paths if path.is_file())
    free = shutil.disk_usage(folder).free
    if needed > free + replaced:
        raise InputError(
            f"{len(cases)} case(s) to preprocess need {in_words(needed)}, but {in_words(free + replaced)} are free · "
            f"{folder} · make room there, or give another root with --preprocessed"
        )
    logger.info(
        "%d case(s) to preprocess take %s; %s are free", len(cases), in_words(needed), in_words(free + replaced)
    )


def in_words(size: int) -> str:
    """Write a number of bytes in the unit that suits it.

    Args:
        size: Bytes.

    Returns:
        Such as `3.2 GiB`.
    """
    for factor, unit in UNITS:
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
