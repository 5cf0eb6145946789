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
from biasreg.core.image_io import Image, read_image

ImageLike: TypeAlias = Any
"""A path; a `SimpleITK.Image`; a nibabel image; an array (X, Y, Z) with its affine (4, 4) to RAS mm, as a tuple; or an
`Image`."""


def to_channels(source: ImageLike | Sequence[ImageLike], name: str = "image") -> tuple[Image, ...]:
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
    if isinstance(source, Image) and source.array.dtype == np.float32:
        return source  # as `read_image` gives it
    array, geometry = _array_and_grid(source, name)
    if array.dtype.kind not in "biuf":
        raise ImageError(f"the {name} image's voxels are of type {array.dtype}; real numbers are needed")
    values = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ImageError(f"{int((~np.isfinite(values)).sum())} voxels of the {name} image are NaN or infinite")
    return Image(values, geometry)


def _array_and_grid(source: ImageLike, name: str) -> tuple[np.ndarray, Geometry]:
    """Take the voxels and the grid out of an object."""
    where = Path(f"{name} image")  # what geometry's errors begin with
    if isinstance(source, Image):
        return source.array, source.geometry
    if isinstance(source, SimpleITK.Image):
        return _from_itk(source, where)
    if isinstance(source, nibabel.Nifti1Image) and source.ndim == 3:
        return np.asanyarray(source.dataobj), nifti.geometry_of(where, source)
    if isinstance(source, nibabel.spatialimages.SpatialImage):
        source = (np.asanyarray(source.dataobj), source.affine)
    if _is_array_with_affine(source):
        array, affine = np.asarray(source[0]), np.asarray(source[1])
        if array.ndim != 3:
            raise ImageError(f"the {name} image has shape {array.shape}; a 3-D image (X, Y, Z) is needed")
        return array, _checked_geometry(affine, array.shape, name)
    raise ImageError(
        f"the {name} image is {type(source).__name__}; give a path, a SimpleITK or nibabel image, or a tuple of an "
        "array and its affine"
    )


def _from_itk(source: Any, where: Path) -> tuple[np.ndarray, Geometry]:
    if source.GetDimension() != 3 or source.GetNumberOfComponentsPerPixel() != 1:
        raise ImageError(
            f"the {where} has {source.GetDimension()} dimensions and {source.GetNumberOfComponentsPerPixel()} values "
            "per voxel; 3 dimensions and one value are needed"
        )
    return SimpleITK.GetArrayFromImage(source).transpose(2, 1, 0), itk.geometry_of(where, source)


def _checked_geometry(affine: np.ndarray, shape: Sequence[int], name: str) -> Geometry:
    try:
        return Geometry.from_affine(affine, shape)
    except GeometryError as error:
        raise GeometryError(f"the {name} image: {error}") from None


def _is_array_with_affine(source: Any) -> bool:
    return isinstance(source, tuple) and len(source) == 2 and np.shape(source[1]) == (4, 4)
