"""NIfTI files through nibabel: headers to geometries, voxels in, files out."""

import logging
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import numpy.typing as npt
from isal import igzip, isal_zlib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from nibabel.wrapstruct import WrapStructError

from biasreg.core.errors import GeometryError, ImageError
from biasreg.core.geometry import Geometry
from biasreg.core.paths import check_readable
from biasreg.core.serialization import atomic_write

logger = logging.getLogger(__name__)

NIFTI_ENDINGS = (".nii.gz", ".nii")

READ_ERRORS = (
    OSError,  # not gzip, wrong checksum
    EOFError,  # gzip stream cut off
    zlib.error,  # gzip stream damaged
    isal_zlib.error,
    ValueError,  # fewer bytes than the header promises
    OverflowError,  # absurd sizes in the header
    MemoryError,
    KeyError,
    ImageFileError,
    HeaderDataError,
    HeaderTypeError,
    WrapStructError,
)
"""What nibabel is known to raise for damaged files."""

OFFSET_TOLERANCE_VOXELS = 0.1
"""Largest distance between the origins of sform and qform."""

AXIS_TOLERANCE = 2e-3
"""Largest difference between the axes of sform and qform, relative to the voxel size.

A qform keeps three float32 numbers of a unit quaternion; the fourth, a square root of what is left, may be wrong by
6e-4, which turns the axes by up to 1.2e-3.
"""

_SPATIAL_UNITS = {0: "unknown", 1: "metres", 2: "mm", 3: "micrometres"}
"""The lowest three bits of xyzt_units."""


UNKNOWN_UNIT = 0
_TIME_UNIT_BITS = 0x38
"""Of xyzt_units."""


class TimeAxis(NamedTuple):
    """What a header says of the fourth axis: distance of volumes, place of the first one, NIfTI's code of the unit."""

    step: float
    start: float
    unit: int


def load(path: Path) -> Any:
    """Open a NIfTI file; the voxels stay on disk.

    Raises:
        ImageError: The file is missing, unreadable, damaged, or not NIfTI.
    """
    check_readable(path)
    try:
        image = nibabel.load(path)
    except READ_ERRORS as error:
        raise ImageError(
            f"{path}: cannot be read as NIfTI ({_one_line(error)}); the file is cut off, damaged, or no NIfTI"
        ) from error
    if not isinstance(image, nibabel.Nifti1Image):
        raise ImageError(f"{path}: is {type(image).__name__}, not NIfTI; convert it to NIfTI")
    return image


def read_voxels(path: Path, image: Any) -> npt.NDArray[Any]:
    """Read the voxels of an opened file, scaled by slope and intercept, in the file's own type if there is no scaling.

    Raises:
        ImageError: The file is cut off or damaged, or its voxels are no real numbers.
    """
    kind = image.get_data_dtype()
    if kind.kind not in "fiu":
        raise ImageError(
            f"{path}: voxels are of type {kind}, but one real number per voxel is needed; convert the image"
        )
    try:
        if path.name.lower().endswith(".gz"):
            # The whole stream is read first, because only its end holds the checksum.
            image = type(image).from_bytes(igzip.decompress(path.read_bytes()))
        return np.asanyarray(image.dataobj)
    except READ_ERRORS as error:
        reason = _one_line(error)
        raise ImageError(f"{path}: the voxels cannot be read ({reason}); the file is cut off or damaged") from error


def geometry_of(path: Path, image: Any) -> Geometry:
    """Return the grid of an opened file's first three axes.

    The sform counts where its code is set, else the qform; a file with neither gets nibabel's centred default and a
    warning.

    Raises:
        GeometryError: Both forms are set and differ, or the grid is sheared, singular or not finite.
    """
    header = image.header
    code = int(header["xyzt_units"]) & 7
    unit = _SPATIAL_UNITS.get(code, f"a unit of unknown code {code}")
    if unit not in {"unknown", "mm"}:
        raise GeometryError(f"{path}: lengths are in {unit}, but mm are needed; convert the image to mm")
    try:
        has_sform, has_qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
        geometry = Geometry.from_affine(image.affine, header.get_data_shape()[:3])
        if has_sform and has_qform:
            _check_forms_agree(header.get_sform(), header.get_qform())
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from None
    except READ_ERRORS as error:
        raise GeometryError(f"{path}: the orientation in the header is unusable: {_one_line(error)}") from error
    if not has_sform and not has_qform:
        logger.warning("%s: neither sform nor qform is set; position and orientation are a guess (centred grid)", path)
    return geometry


def time_axis_of(image: Any) -> TimeAxis:
    """Return what the header of an opened file says of its fourth axis."""
    header = image.header
    unit = int(header["xyzt_units"]) & _TIME_UNIT_BITS
    return TimeAxis(float(header["pixdim"][4]), float(header["toffset"]), unit)


def save(
    path: Path,
    array: npt.NDArray[Any],
    geometry: Geometry,
    *,
    compression: int = 1,
    intent: str | None = None,
    time: TimeAxis | None = None,
) -> None:
    """Write an array as NIfTI, atomically, with sform and qform (code 1) in mm.

    Args:
        path: Ends in `.nii.gz` or `.nii`.
        array: (X, Y, Z) or with further axes; its type is kept (bool becomes uint8).
        geometry: Grid of the first three axes.
        compression: Level of ISA-L's gzip, 0 (fastest) to 3.
        intent: NIfTI intent name, for example `vector`.
        time: What lies along the fourth axis.

    Raises:
        ImageError: NIfTI has no such voxel type.
    """
    voxels = array.astype(np.uint8) if array.dtype == np.bool_ else array
    try:
        image = nibabel.Nifti1Image(voxels, geometry.affine, dtype=voxels.dtype)
    except HeaderDataError as error:
        raise ImageError(f"{path}: voxels of type {array.dtype} cannot be written as NIfTI; convert them") from error
    image.header.set_xyzt_units(xyz="mm")
    image.set_sform(geometry.affine, code=1)
    image.set_qform(geometry.affine, code=1)
    if intent is not None:
        image.header.set_intent(intent)
    if time is not None:
        image.header["pixdim"][4], image.header["toffset"] = time.step, time.start
        image.header["xyzt_units"] = (int(image.header["xyzt_units"]) & ~_TIME_UNIT_BITS) | time.unit
    with atomic_write(path) as temporary:
        if not path.name.lower().endswith(".gz"):
            with temporary.open("wb") as file:
                image.to_stream(file)
            return
        # No name and no time in the gzip header: the same image gives the same bytes.
        with (
            temporary.open("wb") as raw,
            igzip.IGzipFile(filename="", mode="wb", compresslevel=compression, fileobj=raw, mtime=0) as file,
        ):
            image.to_stream(file)


def _check_forms_agree(sform: npt.NDArray[np.float64], qform: npt.NDArray[np.float64]) -> None:
    spacing = np.linalg.norm(sform[:3, :3], axis=0)
    turned = np.abs((sform - qform)[:3, :3] / spacing).max()
    shifted = np.linalg.norm((sform - qform)[:3, 3])
    if turned > AXIS_TOLERANCE or shifted > OFFSET_TOLERANCE_VOXELS * spacing.min():
        raise GeometryError(
            f"sform and qform contradict each other: sform {_rows(sform)}, qform {_rows(qform)};"
            " set the code of the wrong one to 0 or make them equal"
        )


def _rows(matrix: npt.NDArray[np.float64]) -> str:
    return "[" + "; ".join(" ".join(f"{value:.5g}" for value in row) for row in matrix[:3]) + "]"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
