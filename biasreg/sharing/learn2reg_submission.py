"""Displacement fields as a submission to the Learn2Reg challenge."""

import logging
import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from biasreg.core.errors import BiasregError, PredictionError
from biasreg.core.serialization import atomic_write
from biasreg.core.transform_io import read_displacement, write_learn2reg
from biasreg.inference.export import check_save
from biasreg.sharing.predictions import WARP, RegisteredPair, check_empty, find_registered
from biasreg.spatial.native import displacement_to_voxels

logger = logging.getLogger(__name__)

ZIP_FILE = "submission.zip"
Precision = Literal["float32", "float16"]

_DIGITS = re.compile(r"(?:_\d{4})+$", re.ASCII)


@dataclass(frozen=True)
class SubmissionOptions:
    """How a submission is written.

    Attributes:
        precision: `float16` rounds the numbers to half precision; NIfTI stores them as float32 all the same, but such
            files are smaller.
        long_names: Name the kind of each image too, as `disp_0011_0001_0011_0000`; done in any case where short names
            would not tell two pairs apart.
        zipped: Write `submission.zip` with all fields too.
    """

    precision: Precision = "float32"
    long_names: bool = False
    zipped: bool = False


def write_submission(source: Path, output: Path, options: SubmissionOptions | None = None) -> dict[str, str]:
    """Write the fields of an output folder as `disp_<fixed>_<moving>.nii.gz`, in voxels.

    Args:
        source: Output folder of `biasreg_predict`, of images named as the challenge names them.
        output: Folder of the submission; it is empty or not there.
        options: How it is written.

    Returns:
        Reason per pair that could not be written; empty when all went well.

    Raises:
        InputError: There is no field, or the folder cannot be written to or is not empty.

    Source:
        Learn2Reg's public evaluation code: fields (X, Y, Z, 3) that SciPy's `map_coordinates` takes, named by the four
        digits of the fixed subject, then of the moving one; its later versions take the long names for all pairs, the
        short ones only for a fixed image 0000 and a moving image 0001.
    """
    options = options or SubmissionOptions()
    check_empty(output)
    pairs, failures = find_registered(source)
    numbers = _numbers(pairs, failures)
    short = Counter((fixed[0], moving[0]) for fixed, moving in numbers.values())
    long_names = options.long_names or any(count > 1 for count in short.values())
    if long_names and not options.long_names:
        logger.info("short names would not tell all pairs apart: the fields get long ones")
    output.mkdir(parents=True, exist_ok=True)
    for pair in tqdm([pair for pair in pairs if pair.name in numbers], desc="pairs", disable=None):
        fixed, moving = numbers[pair.name]
        parts = (*fixed, *moving) if long_names else (fixed[0], moving[0])
        try:
            _write(pair, output / f"disp_{'_'.join(parts)}.nii.gz", options.precision)
        except BiasregError as error:
            failures[pair.name] = str(error)
    if options.zipped and not failures:  # a submission needs all pairs
        _zip(output)
    return failures


def _numbers(
    pairs: Sequence[RegisteredPair], failures: dict[str, str]
) -> dict[str, tuple[tuple[str, str], tuple[str, str]]]:
    """Subject and kind of the fixed and the moving image of each pair."""
    found = {}
    for pair in pairs:
        try:
            found[pair.name] = (_number(pair.source("fixed")), _number(pair.source("moving")))
        except PredictionError as error:
            failures[pair.name] = str(error)
    counts: Mapping[object, int] = Counter(found.values())
    for name in [name for name, numbers in found.items() if counts[numbers] > 1]:
        failures[name] = f"another pair has the same numbers {found[name]}; leave one of them out"
        del found[name]
    return found


def _number(name: str) -> tuple[str, str]:
    """Read subject and kind off a name such as NLST_0101_0001, or NLST_0101_0001_0000 with biasreg's channel."""
    match = _DIGITS.search(name)
    if match is None:
        raise PredictionError(
            f"the image {name} has no number of four digits at its end, by which the challenge knows it · name images "
            "<Name>_<subject>_<kind>, as NLST_0101_0001"
        )
    digits = match[0][1:].split("_")
    return digits[0], (digits[1] if len(digits) > 1 else "0000")


def _write(pair: RegisteredPair, path: Path, precision: Precision) -> None:
    displacement, fixed = read_displacement(pair.path(WARP))
    check_save(pair.name, pair.moving_geometry, fixed, ("learn2reg",))
    voxels = np.moveaxis(displacement_to_voxels(displacement, fixed)[0].numpy(), 0, -1)  # (X, Y, Z, 3)
    write_learn2reg(path, voxels.astype(precision), fixed)


def _zip(folder: Path) -> None:
    """Put all fields into one archive, without a folder around them; they are compressed already."""
    files = sorted(folder.glob("disp_*.nii.gz"))
    with atomic_write(folder / ZIP_FILE) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            archive.write(file, file.name)
