"""Displacement fields on disk, in the forms that other tools read; LPS is made here.

Inside, a field is an array (X, Y, Z, 3) of RAS millimetres on the grid of the fixed image: a point p of the fixed world
is found in the moving world at p + d(p).
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK

from biasreg.core import itk, nifti
from biasreg.core.errors import ImageError
from biasreg.core.geometry import Geometry, ras_to_lps
from biasreg.core.image_io import strip_ending
from biasreg.core.serialization import atomic_write

__all__ = [
    "ras_to_lps",
    "read_displacement",
    "write_composite_transform",
    "write_displacement",
    "write_learn2reg",
]

VECTOR_INTENT = 1007
"""NIFTI_INTENT_VECTOR. ITK takes the components as they are; those of 1006 (DISPVECT) it would turn around."""

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


def _read_nifti(path: Path) -> tuple[npt.NDArray[Any], Geometry]:
    image = nifti.load(path)
    shape, intent = tuple(image.shape), int(image.header["intent_code"])
    if len(shape) != 5 or shape[3:] != (1, 3):
        raise ImageError(
            f"{path}: a displacement field is 5-D (X, Y, Z, 1, 3), but this file is {len(shape)}-D {shape};"
            f" {_AS_WRITTEN}"
        )
    if intent != VECTOR_INTENT:
        raise ImageError(f"{path}: a displacement field has intent 1007 (vector), but this has {intent}; {_AS_WRITTEN}")
    geometry = nifti.geometry_of(path, image)
    return nifti.read_voxels(path, image)[:, :, :, 0, :], geometry


def _read_itk(path: Path) -> tuple[npt.NDArray[Any], Geometry]:
    reader = itk.read_information(path)
    dimension, components = reader.GetDimension(), reader.GetNumberOfComponents()
    if (dimension, components) != (3, 3):
        raise ImageError(
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
        raise ImageError(f"{path}: {int((~finite).sum())} displacements are NaN or infinite, the first at {place}")
