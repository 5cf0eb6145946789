"""Images as Python programs have them: files, SimpleITK and nibabel images, arrays with affines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import nibabel
import numpy as np
import SimpleITK

from biasreg.core import itk, nifti
from biasreg.core.errors import GeometryError, ImageError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import Image, check_shape, read_image

ImageLike: TypeAlias = Any
"""A path; a `SimpleITK.Image`; a nibabel image; an array (X, Y, Z) with its affine (4, 4) to RAS mm, as a tuple; or an
`Image`."""


def to_channels(source: ImageLike | Sequence[ImageLike], name: str = "given") -> tuple[Image, ...]:
    """Take an image in any form.

    Args:
        source: One image, or a list of them, one per channel.
        name: What it is, for messages.

    Returns:
        One float32 `Image` per channel, all on one grid.

    Raises:
        ImageError: It is of no known form, not 3-D, has several values per voxel, or holds NaN or infinite values.
        GeometryError: Its grid is unusable, or the channels lie on different ones.
    """
    several = isinstance(source, Sequence) and not isinstance(source, str) and not _is_array_with_affine(source)
    channels = tuple(_to_image(each, name) for each in (source if several else (source,)))
    if not channels:
        raise ImageError(f"the {name} image has no channels; give at least one")
    for channel in channels[1:]:
        if not channel.geometry.is_close(channels[0].geometry):
            raise GeometryError(
                f"the channels of the {name} image lie on different grids: {channels[0].geometry.describe()} and "
                f"{channel.geometry.describe()}; resample them onto one grid"
            )
    return channels


def _to_image(source: ImageLike, name: str) -> Image:
    if isinstance(source, str | Path):
        return read_image(source)
    array, geometry = _array_and_grid(source, name)
    if array.dtype.kind not in "biuf":
        raise ImageError(f"the {name} image's voxels are of type {array.dtype}; real numbers are needed")
    if array.shape != geometry.shape:
        raise ImageError(f"the {name} image has shape {array.shape}, but its geometry {geometry.shape}")
    values = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ImageError(f"{int((~np.isfinite(values)).sum())} voxels of the {name} image are NaN or infinite")
    return source if values is getattr(source, "array", None) else Image(values, geometry)


def _array_and_grid(source: ImageLike, name: str) -> tuple[np.ndarray, Geometry]:
    """Take the voxels and the grid out of an object, without axes of length 1 after the third."""
    where = Path(f"the {name} image")  # what errors begin with
    if isinstance(source, Image):
        return source.array, source.geometry
    if isinstance(source, SimpleITK.Image):
        return _from_itk(source, where)
    if isinstance(source, nibabel.spatialimages.SpatialImage):
        check_shape(where, source.shape)
        array = np.asanyarray(source.dataobj).reshape(source.shape[:3])
        if isinstance(source, nibabel.Nifti1Image):
            return array, nifti.geometry_of(where, source)
        return array, _checked_geometry(source.affine, array.shape, where)
    if _is_array_with_affine(source):
        array = np.asarray(source[0])
        check_shape(where, array.shape)
        return array.reshape(array.shape[:3]), _checked_geometry(np.asarray(source[1]), array.shape[:3], where)
    raise ImageError(
        f"the {name} image is {type(source).__name__}; give a path, a SimpleITK or nibabel image, or a tuple of an "
        "array and its affine"
    )


def _from_itk(source: Any, where: Path) -> tuple[np.ndarray, Geometry]:
    if source.GetDimension() != 3 or source.GetNumberOfComponentsPerPixel() != 1:
        raise ImageError(
            f"{where} has {source.GetDimension()} dimensions and {source.GetNumberOfComponentsPerPixel()} values "
            "per voxel; 3 dimensions and one value are needed"
        )
    check_shape(where, source.GetSize())
    return SimpleITK.GetArrayFromImage(source).transpose(2, 1, 0), itk.geometry_of(where, source)


def _checked_geometry(affine: np.ndarray, shape: Sequence[int], where: Path) -> Geometry:
    try:
        return Geometry.from_affine(affine, shape)
    except GeometryError as error:
        raise GeometryError(f"{where}: {error}") from None


def _is_array_with_affine(source: Any) -> bool:
    if not isinstance(source, tuple) or len(source) != 2 or not isinstance(source[1], np.ndarray | list | tuple):
        return False
    return np.shape(source[1]) == (4, 4)
