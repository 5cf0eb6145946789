"""Images of one or several volumes on one grid: time series (4-D) and images with several values per voxel."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from biasreg.core import itk, nifti
from biasreg.core.errors import ImageError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import strip_ending, write_image

VECTOR_INTENTS = {1006: "displacement vectors", 1007: "vectors"}
_FIRST_TRANSFORM_INTENT, _LAST_TRANSFORM_INTENT = 2006, 2016  # FSL's fields and coefficients


@dataclass(frozen=True)
class Series:
    """Volumes on one grid.

    Attributes:
        array: (X, Y, Z) or (X, Y, Z, …) in the file's own type.
        geometry: Grid of each volume.
        time: What lies along the fourth axis, if the file says so.
    """

    array: npt.NDArray[Any]
    geometry: Geometry
    time: nifti.TimeAxis | None = None


def read_series(path: Path | str) -> Series:
    """Read an image of one or several volumes; NIfTI, or ITK's formats with several values per voxel.

    Raises:
        ImageError: The file is missing or damaged, is 2-D, holds vectors (which would have to be turned too), or a
            voxel is NaN or infinite.
        GeometryError: The grid is sheared, singular or not finite, or sform and qform differ.
    """
    file = Path(path)
    time = None
    if strip_ending(file.name)[1] in nifti.NIFTI_ENDINGS:
        image = nifti.load(file)
        _check_shape(file, image.shape)
        _check_intent(file, int(image.header["intent_code"]))
        geometry, array = nifti.geometry_of(file, image), nifti.read_voxels(file, image)
        time = nifti.time_axis_of(image) if array.ndim > 3 else None
    else:
        reader = itk.read_information(file)
        _check_shape(file, reader.GetSize())
        geometry, array = itk.geometry_of(file, reader), itk.read_voxels(file)
        if reader.GetDimension() > 3:
            time = nifti.TimeAxis(reader.GetSpacing()[3], reader.GetOrigin()[3], nifti.UNKNOWN_UNIT)
    broken = 0 if array.dtype.kind != "f" else array.size - int(np.isfinite(array).sum())
    if broken:
        raise ImageError(f"{file}: {broken} voxels are NaN or infinite; replace them in the file")
    return Series(array, geometry, time)


def read_grid(path: Path | str) -> Geometry:
    """Read the grid of an image, a series or a displacement field from its header alone.

    Raises:
        ImageError: The file is missing or damaged, or is 2-D.
        GeometryError: As `read_series`.
    """
    file = Path(path)
    if strip_ending(file.name)[1] in nifti.NIFTI_ENDINGS:
        image = nifti.load(file)
        _check_shape(file, image.shape)
        return nifti.geometry_of(file, image)
    reader = itk.read_information(file)
    _check_shape(file, reader.GetSize())
    return itk.geometry_of(file, reader)


def check_series_name(path: Path, shape: tuple[int, ...]) -> None:
    """Refuse a name under which volumes cannot be written.

    Args:
        path: Where to.
        shape: Shape of the array.

    Raises:
        ImageError: The ending is unknown, or not NIfTI's and there are several volumes.
    """
    ending = strip_ending(path.name)[1]
    if len(shape) > 3 and ending not in nifti.NIFTI_ENDINGS:
        raise ImageError(f"{path}: several volumes are written as NIfTI alone; name the file .nii.gz")


def write_series(path: Path | str, series: Series) -> None:
    """Write volumes; several ones as NIfTI, with what is known of their time.

    Args:
        path: Ends in `.nii.gz` or `.nii`, or for one volume in any of `IMAGE_ENDINGS`.
        series: What is written.

    Raises:
        ImageError: The format cannot hold it.
    """
    file = Path(path)
    check_series_name(file, series.array.shape)
    if series.array.ndim == 3:
        write_image(file, series.array, series.geometry)
    else:
        nifti.save(file, series.array, series.geometry, time=series.time)


def _check_shape(path: Path, shape: Any) -> None:
    size = "×".join(str(n) for n in shape)
    if len(shape) < 3 or 1 in tuple(shape)[:3]:
        raise ImageError(f"{path}: the image is 2-D ({size} voxels); only 3-D images and series of them are supported")
    if min(shape) < 1:
        raise ImageError(f"{path}: the image is empty ({size} voxels)")


def _check_intent(path: Path, intent: int) -> None:
    if intent in VECTOR_INTENTS or _FIRST_TRANSFORM_INTENT <= intent <= _LAST_TRANSFORM_INTENT:
        raise ImageError(
            f"{path}: holds {VECTOR_INTENTS.get(intent, 'a transform of FSL')} (intent {intent}), which would have "
            "to be turned with the image; a transform is given with -t, and chained with further ones there"
        )
