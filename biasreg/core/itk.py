"""The bridge to SimpleITK, whose arrays are (z, y, x) and whose world is LPS."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK

from biasreg.core.errors import GeometryError, ImageError
from biasreg.core.geometry import Geometry, ras_to_lps
from biasreg.core.paths import check_readable
from biasreg.core.serialization import atomic_write


def read_information(path: Path) -> Any:
    """Read a file's header into a `SimpleITK.ImageFileReader`.

    Raises:
        ImageError: The file is missing, unreadable or damaged.
    """
    check_readable(path)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ImageError(f"{path}: cannot be read ({reason(error)}); replace the file") from error
    return reader


def read_voxels(path: Path) -> npt.NDArray[Any]:
    """Read a file's voxels as (X, Y, Z), (X, Y, Z, T) or (X, Y, Z, components).

    Raises:
        ImageError: The file is cut off or damaged.
    """
    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        raise ImageError(f"{path}: the voxels cannot be read ({reason(error)}); replace the file") from error
    array = SimpleITK.GetArrayFromImage(image)
    axes = list(reversed(range(image.GetDimension())))
    return array.transpose([*axes, *range(len(axes), array.ndim)])


def geometry_of(path: Path, source: Any) -> Geometry:
    """Return the grid of the first three axes of a `SimpleITK.Image` or a reader that has read its header.

    Raises:
        GeometryError: The grid is sheared, singular or not finite.
    """
    size, spacing, origin = source.GetSize(), source.GetSpacing(), source.GetOrigin()
    side = math.isqrt(len(source.GetDirection()))
    direction = np.array(source.GetDirection()).reshape(side, side)[:3, :3]
    matrix = np.eye(4)
    matrix[:3, :3] = ras_to_lps((direction * np.array(spacing[:3])).T).T
    matrix[:3, 3] = ras_to_lps(np.array(origin[:3]))
    try:
        return Geometry.from_affine(matrix, size[:3])
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from None


def to_itk(array: npt.NDArray[Any], geometry: Geometry) -> Any:
    """Return a `SimpleITK.Image` of an array (X, Y, Z), or of vectors (X, Y, Z, components) given in LPS.

    Args:
        array: Scalars or vectors on `geometry`; bool becomes uint8.
        geometry: The grid, in RAS; the image's is in LPS.
    """
    voxels = array.astype(np.uint8) if array.dtype == np.bool_ else array
    is_vector = array.ndim == 4
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(np.swapaxes(voxels, 0, 2)), isVector=is_vector)
    image.SetSpacing(_floats(geometry.spacing))
    image.SetOrigin(_floats(ras_to_lps(geometry.origin)))
    image.SetDirection(_floats(ras_to_lps(np.array(geometry.direction).T).T.ravel()))
    return image


def save(path: Path, array: npt.NDArray[Any], geometry: Geometry, *, compression: int = 1) -> None:
    """Write an array (X, Y, Z) in one of ITK's formats (`.mha`, `.mhd`, `.nrrd`), atomically, as one file.

    Raises:
        ImageError: The voxel type has no place in ITK, or the file cannot be written.
    """
    try:
        image = to_itk(array, geometry)
    except (TypeError, KeyError) as error:
        raise ImageError(f"{path}: voxels of type {array.dtype} cannot be written by ITK; convert them") from error
    with atomic_write(path) as temporary:
        # An .mhd may hold its voxels itself, as .mha does; ITK would write a second file beside it.
        written = temporary.with_suffix(".mha") if temporary.suffix.lower() == ".mhd" else temporary
        try:
            SimpleITK.WriteImage(image, str(written), compression > 0, compression)
            written.replace(temporary)
        except RuntimeError as error:
            raise ImageError(f"{path}: cannot be written ({reason(error)})") from error
        finally:
            if written != temporary:
                written.unlink(missing_ok=True)


def _floats(values: Sequence[float] | npt.NDArray[Any]) -> list[float]:
    return [float(value) for value in values]


def reason(error: RuntimeError) -> str:
    """Return the last line of ITK's message, which says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
