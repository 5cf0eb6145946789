"""Transforms of any form as a chain of parts: matrices and displacement fields, in the order that a point meets them.

A chain takes a point of the fixed world to the moving world. Images are resampled through it in this direction.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import SimpleITK

from biasreg.core import itk
from biasreg.core.errors import ImageError, TransformError
from biasreg.core.geometry import Geometry, ras_to_lps
from biasreg.core.image_io import IMAGE_ENDINGS
from biasreg.core.transform_io import LINEAR_ENDINGS, linear_matrix, read_displacement, read_itk_transform

_ANTS_INVERSE = re.compile(r"\[\s*(?P<file>.+?)\s*,\s*(?P<inverted>[01]|true|false)\s*\]", flags=re.IGNORECASE)


class TransformFile(NamedTuple):
    """A file that holds a transform, and whether its inverse is meant."""

    path: Path
    inverted: bool = False


@dataclass(frozen=True)
class LinearPart:
    """An affine map: point p is taken to `matrix` p.

    Attributes:
        matrix: (4, 4) float64, RAS mm.
        kind: ITK's name of it.
        source: The file that it comes from.
    """

    matrix: npt.NDArray[np.float64]
    kind: str
    source: str


@dataclass(frozen=True)
class FieldPart:
    """A displacement field: point p is taken to p + d(p), d linear between voxels and kept at its border beyond them.

    Attributes:
        displacement: d, (X, Y, Z, 3) float32, RAS mm.
        geometry: Grid of d.
        kind: What it is called in the file.
        source: The file that it comes from.
    """

    displacement: npt.NDArray[np.float32]
    geometry: Geometry
    kind: str
    source: str


@dataclass(frozen=True)
class InverseFieldPart:
    """The inverse of a field: point q is taken to the p with p + d(p) = q, found numerically.

    Attributes:
        field: The field that is inverted.
    """

    field: FieldPart

    @property
    def kind(self) -> str:
        """What it is called."""
        return f"inverse of {self.field.kind}"

    @property
    def source(self) -> str:
        """The file that it comes from."""
        return self.field.source


Part = LinearPart | FieldPart | InverseFieldPart


def read_transform(path: Path | str) -> tuple[Part, ...]:
    """Read a transform in any form that biasreg knows.

    A field as an image (`.nii.gz`, `.nii` in the canonical form; `.mha`, `.mhd`, `.nrrd` as ITK's vector image), or
    ITK's transform files (`.mat`, `.tfm`, `.txt`, `.h5`) with linear maps, fields, and composites of these.

    Args:
        path: The file.

    Returns:
        Its parts, that which a fixed point meets first in front. (ITK lists those of a composite the other way round.)

    Raises:
        ImageError: The file cannot be read, is damaged, or holds something else, such as a B-spline.
        TransformError: It is a field in a form that tools misread, or not finite, singular or mirroring.
        GeometryError: The grid of a field is unusable.
    """
    file = Path(path)
    name = file.name.lower()
    if name.endswith(IMAGE_ENDINGS):
        return (FieldPart(*read_displacement(file), kind="displacement field", source=str(path)),)
    if name.endswith(LINEAR_ENDINGS):
        return tuple(_parts(file, read_itk_transform(file)))
    if match := _ANTS_INVERSE.fullmatch(str(path)):
        flag = "--invert" if match["inverted"].lower() in {"1", "true"} else "-t"
        raise ImageError(f"{path}: ANTs' [file,number] is not understood here; write {flag} {match['file']}")
    raise ImageError(
        f"{path}: unknown form of a transform; fields end in {', '.join(IMAGE_ENDINGS)}, other transforms of ITK in "
        f"{', '.join(LINEAR_ENDINGS)}; convert it to one of these"
    )


def default_reference(parts: tuple[Part, ...]) -> Geometry | None:
    """Find the grid that a chain is made for: that of the field that a fixed point meets first, if it is one.

    Args:
        parts: The chain.

    Returns:
        The grid, or None where the chain starts with a matrix or a field inverted numerically.
    """
    first = parts[0] if parts else None
    return first.geometry if isinstance(first, FieldPart) else None


def _parts(path: Path, transform: Any) -> Iterator[Part]:
    kind = transform.GetTransformEnum()
    if kind == SimpleITK.sitkComposite:
        composite = SimpleITK.CompositeTransform(transform)
        for number in reversed(range(composite.GetNumberOfTransforms())):  # ITK applies the last one first
            yield from _parts(path, composite.GetNthTransform(number))
    elif kind == SimpleITK.sitkDisplacementField:
        yield _field(path, SimpleITK.DisplacementFieldTransform(transform))
    elif transform.IsLinear():
        yield LinearPart(linear_matrix(path, transform), transform.GetName(), str(path))
    else:
        raise ImageError(
            f"{path}: holds {transform.GetName()}, which is neither linear nor a displacement field; convert it, for "
            "example by SimpleITK.TransformToDisplacementField"
        )


def _field(path: Path, transform: Any) -> FieldPart:
    image = transform.GetDisplacementField()
    geometry = itk.geometry_of(path, image)
    vectors = SimpleITK.GetArrayViewFromImage(image).transpose(2, 1, 0, 3)
    field = np.ascontiguousarray(ras_to_lps(vectors), dtype=np.float32)
    broken = int((~np.isfinite(field).all(axis=-1)).sum())
    if broken:
        raise TransformError(f"{path}: {broken} displacements are NaN or infinite; make it anew")
    return FieldPart(field, geometry, "DisplacementFieldTransform", str(path))
