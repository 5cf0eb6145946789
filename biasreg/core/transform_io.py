"""Displacement fields and linear transforms on disk, in the forms that other tools read; LPS is made here.

Inside, a field is an array (X, Y, Z, 3) of RAS millimetres on the grid of the fixed image: a point p of the fixed world
is found in the moving world at p + d(p).
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK

from biasreg.core import itk, nifti
from biasreg.core.errors import ImageError, TransformError
from biasreg.core.geometry import Geometry, ras_to_lps
from biasreg.core.image_io import strip_ending
from biasreg.core.paths import check_readable
from biasreg.core.serialization import atomic_write

__all__ = [
    "linear_matrix",
    "ras_to_lps",
    "read_displacement",
    "read_itk_transform",
    "read_linear_transform",
    "write_composite_transform",
    "write_displacement",
    "write_learn2reg",
]

VECTOR_INTENT = 1007
"""NIFTI_INTENT_VECTOR. ITK takes the components as they are; those of 1006 (DISPVECT) it would turn around."""

LINEAR_ENDINGS = (".tfm", ".txt", ".mat", ".h5")
"""Of ITK's transforms, but for fields kept as images; the first two are text."""

SINGULAR_FACTOR = 1e-3
"""A linear transform that shrinks a metre to less than a millimetre along some direction counts as singular."""

_TYPE_NAME = re.compile(rb"(\w+?)_(?:double|float)_(\d)_(\d)")
_LARGEST_LINEAR_BYTES = 1 << 20  # of a file with nothing but matrices; a field is larger
_AS_WRITTEN = "write it as 5-D (X, Y, Z, 1, 3) with intent 1007 (vector), in LPS mm, as ANTs and ITK do"

Field = npt.NDArray[np.float32]


def write_displacement(path: Path | str, displacement: npt.NDArray[Any], geometry: Geometry) -> None:
    """Write the canonical field: NIfTI, 5-D (X, Y, Z, 1, 3), intent 1007, float32, LPS mm.

    ANTs, SimpleITK, elastix, Greedy, Plastimatch and nitransforms read this form alike; the first two are tested.

    Args:
        path: Ends in `.nii.gz` or `.nii`.
        displacement: (X, Y, Z, 3), RAS mm, finite.
        geometry: Grid of the fixed image.

    Raises:
        ImageError: The array does not fit the geometry or is not finite, or the ending is another.
    """
    file = Path(path)
    _check_ending(file, *nifti.NIFTI_ENDINGS)
    _check_field(file, displacement, geometry)
    vectors = ras_to_lps(displacement).astype(np.float32)[:, :, :, None, :]  # (X, Y, Z, 1, 3)
    nifti.save(file, vectors, geometry, intent="vector")


def read_displacement(path: Path | str) -> tuple[Field, Geometry]:
    """Read a field in the canonical form, or an ITK vector image (`.mha`, `.mhd`, `.nrrd`) in LPS mm.

    Returns:
        (X, Y, Z, 3) float32 displacements in RAS mm, and the grid.

    Raises:
        ImageError: A NIfTI file is not 5-D or lacks the vector intent, a file has not three components, or a component
            is not finite.
        GeometryError: The grid is unusable.
    """
    file = Path(path)
    if strip_ending(file.name)[1] in nifti.NIFTI_ENDINGS:
        vectors, geometry = _read_nifti(file)
    else:
        vectors, geometry = _read_itk(file)
    field = np.ascontiguousarray(ras_to_lps(vectors.astype(np.float32)))
    _check_field(file, field, geometry)
    return field, geometry


def write_composite_transform(path: Path | str, displacement: npt.NDArray[Any], geometry: Geometry) -> None:
    """Write the field as an ITK composite transform, which maps fixed points to moving points, as ANTs does.

    Args:
        path: Ends in `.h5`.
        displacement: (X, Y, Z, 3), RAS mm, finite.
        geometry: Grid of the fixed image.

    Raises:
        ImageError: The array does not fit the geometry or is not finite, or the file cannot be written.
    """
    file = Path(path)
    _check_ending(file, ".h5")
    _check_field(file, displacement, geometry)
    vectors = itk.to_itk(ras_to_lps(displacement).astype(np.float64), geometry)
    transform = SimpleITK.CompositeTransform(3)
    transform.AddTransform(SimpleITK.DisplacementFieldTransform(vectors))
    with atomic_write(file) as temporary:
        try:
            SimpleITK.WriteTransform(transform, str(temporary))
        except RuntimeError as error:
            raise ImageError(f"{file}: cannot be written: {' '.join(str(error).split())}") from error


def write_learn2reg(path: Path | str, displacement_voxels: npt.NDArray[Any], geometry: Geometry) -> None:
    """Write the field as Learn2Reg's evaluation reads it: NIfTI, 4-D (X, Y, Z, 3), float32, in voxels.

    The challenge's moving and fixed images share one grid, and component a counts voxels along array axis a.

    Args:
        path: Ends in `.nii.gz`.
        displacement_voxels: (X, Y, Z, 3), voxels, finite.
        geometry: Grid of the fixed image.

    Raises:
        ImageError: The array does not fit the geometry or is not finite.

    Source:
        Hering et al. 2023, Learn2Reg, doi:10.1109/TMI.2022.3213983, and its public evaluation code.
    """
    file = Path(path)
    _check_ending(file, *nifti.NIFTI_ENDINGS)
    _check_field(file, displacement_voxels, geometry)
    nifti.save(file, displacement_voxels.astype(np.float32), geometry)


def read_linear_transform(path: Path | str) -> npt.NDArray[np.float64]:
    """Read a linear ITK transform: translation, rigid, similarity, affine, or several of these composed.

    Args:
        path: Ends in `.tfm`, `.txt`, `.mat` (as ANTs writes) or `.h5`.

    Returns:
        (4, 4) matrix, RAS mm, of the direction that ITK's transforms of images have: fixed point p is found at
        `matrix` p in the moving world.

    Raises:
        ImageError: The file cannot be read, is damaged, or holds a transform that is not linear, not of three
            dimensions, not finite, singular or mirroring.
    """
    file = Path(path)
    transform = read_itk_transform(file)
    _check_linear(file, transform)
    if file.stat().st_size > _LARGEST_LINEAR_BYTES:
        raise ImageError(f"{file}: is larger than any linear transform; give the linear part alone")
    return linear_matrix(file, transform)


def read_itk_transform(path: Path | str) -> Any:
    """Read a transform of three dimensions by ITK, whole.

    Args:
        path: Ends in one of `LINEAR_ENDINGS`; what it holds need not be linear.

    Returns:
        The `SimpleITK.Transform`; points are in LPS mm.

    Raises:
        ImageError: The file cannot be read, is damaged, or holds several transforms side by side, or one of two
            dimensions.
    """
    file = Path(path)
    check_readable(file)
    if not file.name.lower().endswith(LINEAR_ENDINGS):
        raise ImageError(f"{file}: a linear transform ends in {', '.join(LINEAR_ENDINGS)}; write it with ANTs or ITK")
    try:
        transform = SimpleITK.ReadTransform(str(file))
    except RuntimeError as error:
        raise ImageError(
            f"{file}: is damaged, or no transform that ITK reads ({itk.reason(error)}); write it with ANTs or ITK, or "
            "convert it"
        ) from error
    if transform.GetDimension() != 3:
        raise ImageError(f"{file}: is a transform of {transform.GetDimension()} dimensions; 3 are needed")
    _check_whole(file)
    return transform


def linear_matrix(path: Path, transform: Any) -> npt.NDArray[np.float64]:
    """Read the matrix off the action of a linear `SimpleITK.Transform` on four points, LPS made RAS.

    Returns:
        (4, 4) matrix, RAS mm.

    Raises:
        TransformError: It is not finite, singular or mirroring.
    """
    points = [np.zeros(3), *np.eye(3)]
    found = np.array([transform.TransformPoint(point) for point in ras_to_lps(points).tolist()])
    if not np.isfinite(found).all():
        raise TransformError(f"{path}: holds numbers that are NaN or infinite; write it again")
    origin, *images = found
    matrix = np.eye(4)
    matrix[:3, :3] = ras_to_lps(np.stack(images) - origin).T
    matrix[:3, 3] = ras_to_lps(origin)
    smallest = float(np.linalg.svd(matrix[:3, :3], compute_uv=False)[-1])
    if smallest < SINGULAR_FACTOR:
        raise TransformError(
            f"{path}: is singular (it shrinks a direction to {smallest:.3g} of its length); make it anew"
        )
    if (volume := float(np.linalg.det(matrix[:3, :3]))) < 0:
        raise TransformError(
            f"{path}: mirrors the image (determinant {volume:.3g}), which no anatomy does; make it anew"
        )
    return matrix


def _check_linear(path: Path, transform: Any) -> None:
    if not transform.IsLinear():
        composite = transform.GetTransformEnum() == SimpleITK.sitkComposite
        parts = SimpleITK.CompositeTransform(transform) if composite else None
        found = [parts.GetNthTransform(n) for n in range(parts.GetNumberOfTransforms())] if parts else [transform]
        names = ", ".join(part.GetName() for part in found if not part.IsLinear())
        raise ImageError(
            f"{path}: holds {names}, but pre-alignment is a linear map; give the linear part alone (with ANTs the file "
            "0GenericAffine.mat)"
        )


def _check_whole(path: Path) -> None:
    """Refuse what ITK reads in part without a word: a list of transforms, or one without its numbers."""
    content = path.read_bytes()
    names = [match[1].decode("ascii") for match in _TYPE_NAME.finditer(content)]
    if len(names) > 1 and names[0] != "CompositeTransform":
        raise ImageError(
            f"{path}: holds {len(names)} transforms side by side ({', '.join(names)}), of which one would count; write "
            "them as one composite transform"
        )
    if path.name.lower().endswith((".tfm", ".txt")):
        numbers = len(re.findall(rb"^Parameters:.*\n", content + b"\n", flags=re.MULTILINE))
        if numbers < len([name for name in names if name != "CompositeTransform"]):
            raise ImageError(f"{path}: is cut off (a transform has no parameters); write it again")


def _read_nifti(path: Path) -> tuple[npt.NDArray[Any], Geometry]:
    image = nifti.load(path)
    shape, intent = tuple(image.shape), int(image.header["intent_code"])
    if len(shape) != 5 or shape[3:] != (1, 3):
        raise TransformError(
            f"{path}: a displacement field is 5-D (X, Y, Z, 1, 3), but this file is {len(shape)}-D {shape};"
            f" {_AS_WRITTEN}"
        )
    if intent != VECTOR_INTENT:
        raise TransformError(
            f"{path}: a displacement field has intent 1007 (vector), but this has {intent}; {_AS_WRITTEN}"
        )
    geometry = nifti.geometry_of(path, image)
    return nifti.read_voxels(path, image)[:, :, :, 0, :], geometry


def _read_itk(path: Path) -> tuple[npt.NDArray[Any], Geometry]:
    reader = itk.read_information(path)
    dimension, components = reader.GetDimension(), reader.GetNumberOfComponents()
    if (dimension, components) != (3, 3):
        raise TransformError(
            f"{path}: a displacement field is a 3-D image with 3 components per voxel, but this is {dimension}-D with"
            f" {components}; write it as a vector image in LPS mm, as ITK does"
        )
    return itk.read_voxels(path), itk.geometry_of(path, reader)


def _check_ending(path: Path, *endings: str) -> None:
    if not path.name.lower().endswith(endings):
        raise ImageError(f"{path}: this form of a transform is written as {' or '.join(endings)}; name the file so")


def _check_field(path: Path, displacement: npt.NDArray[Any], geometry: Geometry) -> None:
    if displacement.shape != (*geometry.shape, 3):
        raise ImageError(
            f"{path}: the displacement's shape {displacement.shape} is not {(*geometry.shape, 3)}, as its grid requires"
        )
    finite = np.isfinite(displacement).all(axis=-1)
    if not finite.all():
        place = tuple(int(index) for index in np.argwhere(~finite)[0])
        raise TransformError(f"{path}: {int((~finite).sum())} displacements are NaN or infinite, the first at {place}")
