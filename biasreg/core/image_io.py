"""Images and label maps from files and to files, on RAS geometries."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from biasreg.core import itk, nifti
from biasreg.core.errors import GeometryError, ImageError
from biasreg.core.geometry import Geometry

logger = logging.getLogger(__name__)

IMAGE_ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")
VOLUME_ENDINGS = (
    *IMAGE_ENDINGS,
    *(".dcm", ".gipl", ".hdr", ".img", ".mgh", ".mgz", ".mif", ".mnc", ".nhdr", ".nii.bz2", ".npy", ".npz"),
    *(".tif", ".tiff"),
)
"""Endings of files that hold volumes, those of formats that are not read included."""

_LABEL_TYPES = (np.uint8, np.uint16, np.int32, np.int64)


@dataclass(frozen=True)
class Image:
    """An array and the grid that it lies on.

    Attributes:
        array: (X, Y, Z), axes as in the file.
        geometry: The grid, in RAS+ mm.
    """

    array: npt.NDArray[Any]
    geometry: Geometry


def strip_ending(name: str) -> tuple[str, str]:
    """Split a file name into its stem and its image ending.

    Raises:
        ImageError: The name ends in none of `IMAGE_ENDINGS`.
    """
    for ending in IMAGE_ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)], ending
    raise ImageError(f"{name}: unknown image format; use one of {', '.join(IMAGE_ENDINGS)}")


def image_files(path: Path | str) -> tuple[Path, ...]:
    """List the files that an image consists of: its own, and those of its voxels where a MetaImage header names others.

    Args:
        path: The image.

    Returns:
        The file itself first; only files that exist beside it.
    """
    file = Path(path)
    if not file.name.lower().endswith((".mhd", ".mha")):
        return (file,)
    names = [name for name in _data_files(file) if name != "LOCAL"]
    return (file, *(file.parent / name for name in names if (file.parent / name).is_file()))


def _data_files(path: Path) -> list[str]:
    """Read what the last entry of a MetaImage header names: one file, or a list in the lines after it."""
    with path.open("rb") as stream:
        for line in stream:
            key, _, value = line.decode("utf-8", errors="replace").partition("=")
            if key.strip() == "ElementDataFile":
                name = value.strip()
                rest = stream if name.startswith("LIST") else ()
                return [name, *(other.decode("utf-8", errors="replace").strip() for other in rest)]
    return []


def read_geometry(path: Path | str) -> Geometry:
    """Read the grid of an image from its header alone.

    Raises:
        ImageError: The file is missing or damaged, or is no 3-D image with one value per voxel.
        GeometryError: The grid is sheared, singular or not finite, or sform and qform differ.
    """
    file = Path(path)
    if strip_ending(file.name)[1] in nifti.NIFTI_ENDINGS:
        image = nifti.load(file)
        check_shape(file, image.shape)
        return nifti.geometry_of(file, image)
    reader = itk.read_information(file)
    _check_components(file, reader.GetNumberOfComponents())
    check_shape(file, reader.GetSize())
    return itk.geometry_of(file, reader)


def has_orientation(path: Path | str) -> bool:
    """Tell whether a file says how its grid lies in the world; a NIfTI file without sform and qform does not.

    Args:
        path: A file that can be read.
    """
    file = Path(path)
    if strip_ending(file.name)[1] not in nifti.NIFTI_ENDINGS:
        return True
    header = nifti.load(file).header
    return int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0


def read_image(path: Path | str) -> Image:
    """Read an image as float32.

    Raises:
        ImageError: As `read_geometry`, or a voxel is NaN or infinite.
        GeometryError: As `read_geometry`.
    """
    voxels, geometry = _read(Path(path))
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused
        array = np.ascontiguousarray(voxels, dtype=np.float32)
    _check_finite(path, array)
    return Image(array, geometry)


def read_channels(paths: Sequence[Path]) -> tuple[Image, ...]:
    """Read the channels of an image as float32.

    Args:
        paths: One file per channel.

    Returns:
        One image per channel, all on one grid.

    Raises:
        ImageError: As `read_image`.
        GeometryError: As `read_geometry`, or the channels lie on different grids.
    """
    channels = tuple(read_image(path) for path in paths)
    for path, channel in zip(paths, channels, strict=True):
        if not channel.geometry.is_close(channels[0].geometry):
            raise GeometryError(
                f"the channels lie on different grids · {path} ({channel.geometry.describe()}) and {paths[0].name} "
                f"({channels[0].geometry.describe()}) · resample them onto one grid"
            )
    return channels


def read_labels(path: Path | str) -> Image:
    """Read a label map as the smallest of uint8, uint16, int32 and int64 that holds its values.

    Raises:
        ImageError: As `read_geometry`, or a voxel is no whole number.
        GeometryError: As `read_geometry`.
    """
    voxels, geometry = _read(Path(path))
    if voxels.dtype.kind == "f":
        _check_finite(path, voxels)
        broken = voxels != np.rint(voxels)
        if broken.any():
            value = voxels[broken][0]
            raise ImageError(
                f"{path}: a label map holds whole numbers, but {int(broken.sum())} voxels do not"
                f" (for example {value:g}); was it resampled with interpolation? Resample it with nearest neighbours"
            )
    lowest, highest = int(voxels.min()), int(voxels.max())
    for dtype in _LABEL_TYPES:
        if np.iinfo(dtype).min <= lowest and highest <= np.iinfo(dtype).max:
            return Image(np.ascontiguousarray(voxels, dtype=dtype), geometry)
    raise ImageError(f"{path}: label values from {lowest} to {highest} do not fit into 64-bit integers")


def write_image(path: Path | str, array: npt.NDArray[Any], geometry: Geometry, *, compression: int = 1) -> None:
    """Write an image or a label map; its format follows the ending, its voxel type the array's.

    The file appears whole or not at all. NIfTI gets sform and qform (code 1), in mm.

    Args:
        path: Ends in one of `IMAGE_ENDINGS`.
        array: (X, Y, Z); bool becomes uint8.
        geometry: The grid of `array`.
        compression: Level from 0 (ITK's formats: none) to 3.

    Raises:
        ImageError: The array does not fit the geometry, or the format cannot hold it.
    """
    file = Path(path)
    ending = strip_ending(file.name)[1]
    if array.shape != geometry.shape:
        raise ImageError(f"{file}: the array's shape {array.shape} is not the geometry's {geometry.shape}")
    if ending in nifti.NIFTI_ENDINGS:
        nifti.save(file, array, geometry, compression=compression)
    else:
        itk.save(file, array, geometry, compression=compression)


def _read(path: Path) -> tuple[npt.NDArray[Any], Geometry]:
    if strip_ending(path.name)[1] in nifti.NIFTI_ENDINGS:
        image = nifti.load(path)
        check_shape(path, image.shape)
        geometry = nifti.geometry_of(path, image)
        voxels = nifti.read_voxels(path, image)
    else:
        geometry = read_geometry(path)
        voxels = itk.read_voxels(path)
    if voxels.ndim > 3:
        logger.info("%s: axes of length 1 after the third are dropped (shape %s)", path, voxels.shape)
    return voxels.reshape(geometry.shape), geometry


def check_shape(path: Path, shape: Sequence[int]) -> None:
    """Refuse what is no 3-D image; further axes of length 1 are let pass.

    Args:
        path: The file, or what else the error is to begin with.
        shape: Its sides.

    Raises:
        ImageError: It is 2-D, empty, or holds several volumes.
    """
    size = "×".join(str(n) for n in shape)
    if len(shape) < 3 or 1 in shape[:3]:
        raise ImageError(f"{path}: the image is 2-D ({size} voxels); only 3-D images are supported so far")
    if any(n != 1 for n in shape[3:]):
        raise ImageError(
            f"{path}: the file holds more than one volume ({size}); store one 3-D volume per file"
            " (channels as separate files _0000, _0001, …)"
        )
    if min(shape) < 1:
        raise ImageError(f"{path}: the image is empty ({size} voxels)")


def _check_components(path: Path, components: int) -> None:
    if components != 1:
        raise ImageError(f"{path}: {components} values per voxel (colour or vectors); one is needed; split the image")


def _check_finite(path: Path | str, array: npt.NDArray[Any]) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        place = tuple(int(index) for index in np.argwhere(~finite)[0])
        raise ImageError(
            f"{path}: {int((~finite).sum())} voxels are NaN or infinite, the first at {place}; replace them in the file"
        )
