"""The pairs in an output folder of `biasreg_predict`, and what their images are called."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from biasreg.core import nifti
from biasreg.core.errors import BiasregError, InputError, PredictionError, format_faults
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import IMAGE_ENDINGS
from biasreg.core.pairs import FURTHER_FIELDS
from biasreg.core.paths import check_writable
from biasreg.core.serialization import read_record
from biasreg.inference.record import PredictionRecord
from biasreg.inference.staging import record_path

WARP = "_warp.nii.gz"
INVERSE = "_inverse_warp.nii.gz"
# What else of a pair ends in WARP: its inverse, and the fields of coarser levels. No pair is called so beside its own.
FURTHER_FIELD = re.compile(rf"{FURTHER_FIELDS}_warp\.nii\.gz$")


@dataclass(frozen=True)
class RegisteredPair:
    """A pair that was registered.

    Attributes:
        name: Its identifier.
        folder: Folder of its files.
        record: What is known of it.
    """

    name: str
    folder: Path
    record: PredictionRecord

    def path(self, suffix: str) -> Path:
        """Name one of its files, as `<folder>/<pair>_warp.nii.gz` by the suffix `_warp.nii.gz`."""
        return self.folder / f"{self.name}{suffix}"

    def source(self, role: str) -> str:
        """Name the image that it was made from, without folder and ending; of several channels the first.

        Args:
            role: `moving` or `fixed`.

        Raises:
            PredictionError: The record does not name it.
        """
        for file in self.record.inputs:
            if file.role == role:
                name = re.split(r"[/\\]", file.path)[-1]
                ending = next((each for each in IMAGE_ENDINGS if name.lower().endswith(each)), "")
                return name[: len(name) - len(ending)]
        raise PredictionError(f"its record names no {role} image · {record_path(self.folder, self.name)}")

    @property
    def moving_geometry(self) -> Geometry:
        """Grid of the moving image, which the inverse field lies on."""
        path = self.path(INVERSE)
        return nifti.geometry_of(path, nifti.load(path))


def find_registered(folder: Path) -> tuple[list[RegisteredPair], dict[str, str]]:
    """List the pairs of an output folder that have a field.

    Args:
        folder: Output folder of `biasreg_predict`.

    Returns:
        The pairs, by name, and the reason of each that cannot be used.

    Raises:
        InputError: The folder holds no field.
    """
    fields = [path.name for path in folder.glob(f"*{WARP}") if not FURTHER_FIELD.search(path.name)]
    names = sorted(name.removesuffix(WARP) for name in fields)
    if not names:
        raise InputError(f"there is no field *{WARP} · {folder} · name an output folder of biasreg_predict with -i")
    pairs, faults = [], {}
    for name in names:
        try:
            pairs.append(RegisteredPair(name, folder, read_record(record_path(folder, name), PredictionRecord)))
        except BiasregError as error:
            faults[name] = f"it has no record of this version of biasreg ({error})"
    return pairs, faults


def check_empty(folder: Path) -> None:
    """Refuse a folder that holds something, so that nothing is mixed or replaced.

    Raises:
        InputError: It holds something, or cannot be written to.
    """
    check_writable(folder, "choose another folder with -o")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"the folder is not empty · {folder} · choose another with -o, or empty it")


def check_written(failures: Mapping[str, str]) -> None:
    """Raise when pairs could not be written.

    Args:
        failures: Reason per such pair.

    Raises:
        PredictionError: If there is any; the message has a line for each.
    """
    if failures:
        raise PredictionError(
            format_faults("pairs that could not be written", [f"{pair}: {reason}" for pair, reason in failures.items()])
        )
