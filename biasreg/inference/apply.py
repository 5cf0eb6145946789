"""Apply transforms to images, label maps, series of volumes and points, in memory.

Every image is resampled once, through the composed transform: the value at reference point p is moving(p + d(p)).
Points go the same way: a point p of the fixed image is taken to p + d(p) in the moving one.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import SimpleITK
import torch
from numpy.typing import NDArray

from biasreg.core import itk
from biasreg.core.errors import ImageError
from biasreg.core.geometry import Geometry, apply_affine, ras_to_lps
from biasreg.core.image_io import Image
from biasreg.core.series_io import Series
from biasreg.core.transforms import Part, TransformFile, read_transform
from biasreg.spatial.jacobian import jacobian_determinant
from biasreg.spatial.native import displacement_to_voxels, interpolate_labels, moving_coordinates
from biasreg.spatial.transform_chain import Composed, Mapped, compose, invert_parts, map_points
from biasreg.spatial.warp import in_field_of_view, sample

Interpolation = Literal["linear", "bspline", "nearest", "label"]
INTERPOLATIONS: tuple[Interpolation, ...] = ("linear", "bspline", "nearest", "label")

_MOST_LABELS = 1000  # different whole numbers in a label map; an image has fewer only if it is 8-bit
_EQUAL_NEIGHBOURS = 0.6  # share among voxels off the background; of labels most, of intensities few

Resampler = Callable[[NDArray], NDArray]


def read_transforms(files: Sequence[TransformFile]) -> tuple[Part, ...]:
    """Read transforms into one chain, in ANTs' order: fixed points meet the first file first.

    Args:
        files: The files, each with whether its inverse is meant.

    Returns:
        The chain.

    Raises:
        ImageError: A file cannot be read, is no transform, or cannot be used.
    """
    parts: list[Part] = []
    for path, inverted in files:
        found = read_transform(path)
        parts += invert_parts(found) if inverted else found
    return tuple(parts)


def compose_transforms(parts: Sequence[Part], reference: Geometry) -> Composed:
    """Make one field of a chain on the reference grid, through which images are resampled.

    Args:
        parts: The chain, as `read_transforms` gives it.
        reference: The grid.

    Returns:
        The field, with the number of voxels that the chain's own fields do not reach.
    """
    return compose(parts, reference)


def apply_to_image(
    image: Image, transform: Composed, interpolation: Interpolation = "linear", fill: float | None = None
) -> NDArray:
    """Resample one volume through a transform.

    Args:
        image: The moving image.
        transform: From the reference grid, where the result lies, to the moving image.
        interpolation: `linear` and `bspline` (cubic) give float32; `nearest` keeps the image's type.
        fill: Value where the moving image does not reach; its minimum when None.

    Returns:
        (X, Y, Z) on the reference grid.

    Raises:
        ImageError: The transform leads nowhere into the image, or the fill value does not fit.
    """
    return apply_to_series(Series(image.array, image.geometry), transform, interpolation, fill)


def apply_to_labels(labels: Image, transform: Composed) -> NDArray:
    """Resample a label map: each label is interpolated linearly and the largest wins; outside is background, 0.

    Args:
        labels: The moving label map, integer.
        transform: From the reference grid to the moving image.

    Returns:
        (X, Y, Z) on the reference grid, with no value that the map does not have.

    Raises:
        ImageError: The transform leads nowhere into the map.
    """
    return apply_to_series(Series(labels.array, labels.geometry), transform, "label")


def apply_to_series(
    series: Series, transform: Composed, interpolation: Interpolation = "linear", fill: float | None = None
) -> NDArray:
    """Resample each volume of a series through the same transform.

    Args:
        series: Volumes (X', Y', Z', …) on the moving grid.
        transform: From the reference grid to the moving image.
        interpolation: As in `apply_to_image`, or `label`, as in `apply_to_labels`.
        fill: Value where the moving image does not reach; the minimum of all volumes when None, 0 for labels.

    Returns:
        (X, Y, Z, …) on the reference grid.

    Raises:
        ImageError: The transform leads nowhere into the image, or the fill value does not fit.
    """
    moving = series.array
    outside = _outside_value(moving, interpolation, fill)
    coordinates = moving_coordinates(transform.displacement, transform.geometry, series.geometry)
    _check_overlap(coordinates, series.geometry, transform)
    resample = _resampler(series.geometry, transform, coordinates, interpolation, outside)
    kind = moving.dtype if interpolation in {"nearest", "label"} else np.dtype(np.float32)
    result = np.empty((*transform.geometry.shape, *moving.shape[3:]), dtype=kind)
    for index in np.ndindex(*moving.shape[3:]):
        result[(..., *index)] = resample(moving[(..., *index)])
    return result


def apply_to_points(points: NDArray, parts: Sequence[Part]) -> Mapped:
    """Take points of the fixed image to the moving one: p + d(p).

    This is opposite to the way in which the image moves; ANTs' points go the same way. To take points of the moving
    image to the fixed one, give the inverse.

    Args:
        points: (N, 3), RAS mm.
        parts: The chain, as `read_transforms` gives it.

    Returns:
        The points, RAS mm, and how many of them the chain's fields do not reach; there they keep their border value.
    """
    return map_points(parts, points)


def jacobian_of(transform: Composed) -> NDArray[np.float32]:
    """Determinant of the Jacobian of a composed transform: local change of volume, 0 or less where it folds.

    Args:
        transform: On a grid of at least 2 voxels along each axis.

    Returns:
        (X, Y, Z) float32 on its grid.
    """
    voxels = displacement_to_voxels(transform.displacement, transform.geometry)
    return np.asarray(jacobian_determinant(voxels)[0].numpy(), dtype=np.float32)


def looks_like_labels(array: NDArray) -> bool:
    """Tell whether a volume is probably a label map: few whole numbers, and neighbours off the background mostly alike.

    Args:
        array: (X, Y, Z).
    """
    whole = array.dtype.kind in "iub" or bool((array == np.rint(array)).all())
    if not whole:
        return False
    values, counts = np.unique(array, return_counts=True)
    if not 1 < len(values) <= _MOST_LABELS:
        return False
    drawn = (array != values[counts.argmax()])[:-1]
    return float((array[1:] == array[:-1])[drawn].mean()) > _EQUAL_NEIGHBOURS if drawn.any() else False


def _outside_value(moving: NDArray, interpolation: Interpolation, fill: float | None) -> float:
    if interpolation == "label":
        if moving.dtype.kind not in "iu":
            raise ImageError(f"labels are whole numbers, but the voxels are of type {moving.dtype}")
        if fill not in (None, 0):
            raise ImageError(f"label maps have 0 (background) where there is no image, not {fill:g}; leave out --fill")
        return 0
    if fill is None:
        return float(moving.min())
    if interpolation == "nearest" and moving.dtype.kind in "iu":
        limits = np.iinfo(moving.dtype)
        if fill != int(fill) or not limits.min <= fill <= limits.max:
            raise ImageError(f"the fill value {fill:g} does not fit into voxels of type {moving.dtype}; choose another")
    return fill


def _check_overlap(coordinates: NDArray, moving: Geometry, transform: Composed) -> None:
    if bool(in_field_of_view(torch.from_numpy(coordinates)[None], moving.shape).any()):
        return
    middle = tuple(size // 2 for size in transform.geometry.shape)
    target = apply_affine(moving.affine, coordinates[:, middle[0], middle[1], middle[2]])
    raise ImageError(
        "the transform leads nowhere into the image: the middle of the reference, "
        f"{_point(apply_affine(transform.geometry.affine, middle))}, is taken to {_point(target)}, but the image, "
        f"{moving.describe()}, lies around {_point(moving.center)} (RAS mm); are fixed and moving, or the order of "
        "the transforms, swapped? Then give --invert, or another order"
    )


def _point(position: NDArray) -> str:
    return "(" + ", ".join(f"{value:.1f}" for value in position) + ")"


def _resampler(
    geometry: Geometry, transform: Composed, coordinates: NDArray, interpolation: Interpolation, outside: float
) -> Resampler:
    """Make the function that resamples one volume."""
    if interpolation == "linear":
        positions = torch.from_numpy(coordinates)[None]
        return lambda volume: sample(_tensor(volume), positions, padding=outside)[0, 0].numpy()
    if interpolation == "label":
        return lambda volume: interpolate_labels(np.ascontiguousarray(volume), coordinates)
    if interpolation == "nearest":
        return _nearest(geometry, coordinates, outside)
    return _bspline(geometry, transform, outside)


def _tensor(volume: NDArray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))[None, None]


def _nearest(geometry: Geometry, coordinates: NDArray, outside: float) -> Resampler:
    reached = in_field_of_view(torch.from_numpy(coordinates)[None], geometry.shape)[0, 0].numpy()
    index = tuple(
        np.clip(np.rint(positions), 0, size - 1).astype(np.int32)
        for positions, size in zip(coordinates, geometry.shape, strict=True)
    )
    return lambda volume: np.where(reached, volume[index], np.asarray(outside).astype(volume.dtype))


def _bspline(geometry: Geometry, transform: Composed, outside: float) -> Resampler:
    """Cubic B-splines by SimpleITK, through the same composed field."""
    vectors = itk.to_itk(ras_to_lps(transform.displacement).astype(np.float64), transform.geometry)
    resampler = SimpleITK.ResampleImageFilter()
    resampler.SetReferenceImage(vectors)
    resampler.SetTransform(SimpleITK.DisplacementFieldTransform(vectors))
    resampler.SetInterpolator(SimpleITK.sitkBSpline)
    resampler.SetDefaultPixelValue(outside)
    resampler.SetOutputPixelType(SimpleITK.sitkFloat32)

    def resample(volume: NDArray) -> NDArray:
        result = resampler.Execute(itk.to_itk(np.asarray(volume, dtype=np.float32), geometry))
        return SimpleITK.GetArrayFromImage(result).transpose(2, 1, 0)

    return resample
