"""Apply transforms from files to files."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from biasreg.core.errors import BiasregError, ImageError, InputError, PredictionError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import read_labels, strip_ending, write_image
from biasreg.core.points_io import read_point_table, write_point_table
from biasreg.core.series_io import Series, check_series_name, read_grid, read_series, write_series
from biasreg.core.transform_io import write_composite_transform, write_displacement
from biasreg.core.transforms import InverseFieldPart, Part, TransformFile, default_reference
from biasreg.evaluation.metrics import field_metrics
from biasreg.inference.apply import (
    Interpolation,
    apply_to_points,
    apply_to_series,
    compose_transforms,
    jacobian_of,
    looks_like_labels,
    read_transforms,
)
from biasreg.spatial.transform_chain import Composed

logger = logging.getLogger(__name__)

POINTS_ENDING = ".csv"
FIELD_ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class ApplyRequest:
    """What is to be done.

    Attributes:
        transforms: The chain in ANTs' order: fixed points meet the first file first.
        inputs: Moving images, series, label maps, or points (`.csv`).
        outputs: A file for each input, or one folder for all of them, where they keep their names.
        reference: Image whose grid the results lie on; None takes the grid of the field that comes first.
        interpolation: Of all images.
        fill: Value where the moving image does not reach; the image's minimum when None.
        ras: Points are in RAS mm, read and written, not in LPS mm.
        save_transform: Where the composed transform is written as one field, if wanted.
        jacobian: Where the determinant of its Jacobian is written, if wanted.
    """

    transforms: tuple[TransformFile, ...]
    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    reference: Path | None = None
    interpolation: Interpolation = "linear"
    fill: float | None = None
    ras: bool = False
    save_transform: Path | None = None
    jacobian: Path | None = None


def apply_files(request: ApplyRequest) -> dict[str, str]:
    """Apply a chain of transforms to files; an input that fails does not stop the others.

    Args:
        request: What is to be done.

    Returns:
        Reason of failure per failed input; empty when all went well.

    Raises:
        InputError: The request makes no sense, a transform or the reference cannot be used, or the only input cannot.
    """
    pairs = _pairs(request)
    parts = read_transforms(request.transforms)
    _warn_folds(parts)
    transform = None
    if _needs_grid(request):
        transform = compose_transforms(parts, _reference(request, parts))
        _warn_outside(parts, transform.outside, int(np.prod(transform.geometry.shape)), "voxels of the reference")
        _write_transform(request, transform)
    failures: dict[str, str] = {}
    for source, target in pairs:
        try:
            if _is_points(source):
                _apply_to_points(source, target, parts, request.ras)
            else:
                assert transform is not None  # images need a grid
                _apply_to_image(source, target, transform, request)
        except (BiasregError, OSError, MemoryError) as error:
            if len(pairs) == 1:
                raise
            failures[str(source)] = str(error) or type(error).__name__
            logger.error("%s failed: %s", source, failures[str(source)])
    return failures


def check_failures(failures: dict[str, str]) -> None:
    """Raise when inputs failed.

    Args:
        failures: Reason per failed input, which `apply_files` has logged.

    Raises:
        PredictionError: If any input failed; the message names them.
    """
    if failures:
        raise PredictionError(
            f"{len(failures)} input(s) could not be transformed: {', '.join(failures)}; reasons are above"
        )


def _is_points(path: Path) -> bool:
    return path.name.lower().endswith(POINTS_ENDING)


def _needs_grid(request: ApplyRequest) -> bool:
    images = any(not _is_points(path) for path in request.inputs)
    return images or request.save_transform is not None or request.jacobian is not None


def _pairs(request: ApplyRequest) -> list[tuple[Path, Path]]:
    """Match inputs and outputs, and refuse names that cannot be meant, before anything is read."""
    if not request.transforms:
        raise InputError("no transform is given; give one with -t or --invert")
    if not request.inputs and request.save_transform is None and request.jacobian is None:
        raise InputError("there is nothing to do; give -i and -o, --save_transform or --jacobian")
    if request.fill is not None and not math.isfinite(request.fill):
        raise InputError(f"the fill value must be a finite number, got {request.fill}")
    targets = _targets(request.inputs, request.outputs)
    written = [*targets, *(path for path in (request.save_transform, request.jacobian) if path is not None)]
    read = {path.resolve() for path in (*request.inputs, *(file.path for file in request.transforms))}
    read |= {request.reference.resolve()} if request.reference else set()
    for path in written:
        if path.resolve() in read:
            raise InputError(f"{path}: would be overwritten by its own result; choose another name")
    doubled = sorted({str(path) for path in written if written.count(path) > 1})
    if doubled:
        raise InputError(f"several results would be written to {', '.join(doubled)}; give each a name of its own")
    _check_names(request, targets)
    return list(zip(request.inputs, targets, strict=True))


def _targets(inputs: Sequence[Path], outputs: Sequence[Path]) -> list[Path]:
    if len(outputs) == 1 and inputs and _is_folder(outputs[0]):
        return [outputs[0] / path.name for path in inputs]
    if len(inputs) != len(outputs):
        raise InputError(
            f"{len(inputs)} input(s) and {len(outputs)} output(s) are given; give as many outputs, or one folder"
        )
    folders = [path for path in outputs if path.is_dir()]
    if folders:
        raise InputError(f"{folders[0]}: is a folder, but so many outputs must be files; give that folder alone")
    return list(outputs)


def _is_folder(path: Path) -> bool:
    return path.is_dir() or not path.suffix


def _check_names(request: ApplyRequest, targets: Sequence[Path]) -> None:
    for source, target in zip(request.inputs, targets, strict=True):
        if _is_points(source) != _is_points(target):
            raise InputError(f"{source} cannot become {target}: points go to {POINTS_ENDING}, images to images")
        if not _is_points(source):
            strip_ending(source.name)
            strip_ending(target.name)
    if request.save_transform and not request.save_transform.name.lower().endswith((*FIELD_ENDINGS, ".h5")):
        raise InputError(f"{request.save_transform}: a transform is written as .nii.gz or .h5; name the file so")
    if request.jacobian:
        strip_ending(request.jacobian.name)


def _reference(request: ApplyRequest, parts: Sequence[Part]) -> Geometry:
    if request.reference is not None:
        return read_grid(request.reference)
    geometry = default_reference(tuple(parts))
    if geometry is None:
        raise InputError(
            f"{request.transforms[0].path}: a matrix, or a field that is inverted, does not say on which grid the "
            "results shall lie; give the fixed image with -r"
        )
    return geometry


def _warn_outside(parts: Sequence[Part], outside: Sequence[int], count: int, what: str) -> None:
    for part, number in zip(parts, outside, strict=True):
        if number:
            hint = "; are the order and the direction of the transforms right?" if number == count else ""
            logger.warning(
                "%s: %d of %d %s (%.1f %%) lie outside the field, which keeps the value of its border there%s",
                *(part.source, number, count, what, 100 * number / count, hint),
            )


def _warn_folds(parts: Sequence[Part]) -> None:
    for part in parts:
        if isinstance(part, InverseFieldPart) and min(part.field.geometry.shape) > 1:
            percent = field_metrics(part.field.displacement, part.field.geometry).folding_percent
            if percent > 0:
                text = "%s: folds at %.3g %% of its voxels; there it has no inverse, and the nearest point is taken"
                logger.warning(text, part.source, percent)


def _write_transform(request: ApplyRequest, transform: Composed) -> None:
    if (path := request.save_transform) is not None:
        write = write_displacement if path.name.lower().endswith(FIELD_ENDINGS) else write_composite_transform
        write(path, transform.displacement, transform.geometry)
    if request.jacobian is not None:
        if min(transform.geometry.shape) < 2:
            raise ImageError(f"{request.jacobian}: a derivative needs 2 voxels along each axis of the reference")
        write_image(request.jacobian, jacobian_of(transform), transform.geometry)


def _apply_to_points(source: Path, target: Path, parts: Sequence[Part], ras: bool) -> None:
    table = read_point_table(source, ras=ras)
    mapped = apply_to_points(table.coordinates, parts)
    _warn_outside(parts, mapped.outside, len(table.coordinates), f"points of {source}")
    write_point_table(target, replace(table, coordinates=mapped.points), ras=ras)


def _apply_to_image(source: Path, target: Path, transform: Composed, request: ApplyRequest) -> None:
    series = _read(source, request.interpolation)
    check_series_name(target, series.array.shape)
    try:
        result = apply_to_series(series, transform, request.interpolation, request.fill)
    except ImageError as error:
        raise ImageError(f"{source}: {error}") from None
    write_series(target, replace(series, array=result, geometry=transform.geometry))


def _read(source: Path, interpolation: Interpolation) -> Series:
    series = read_series(source)
    if interpolation == "label":
        if series.array.ndim == 3:
            labels = read_labels(source)
            return replace(series, array=labels.array)
        return replace(series, array=_whole_numbers(source, series.array))
    first = series.array.reshape(*series.geometry.shape, -1)[..., 0]
    if interpolation != "nearest" and looks_like_labels(first):
        logger.warning(
            "%s: looks like a label map (%d different whole numbers), whose values %s interpolation mixes into others; "
            "if it is one, use --interpolation label",
            *(source, len(np.unique(first)), interpolation),
        )
    return series


def _whole_numbers(source: Path, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind in "iu":
        return array
    if (array != np.rint(array)).any():
        raise ImageError(f"{source}: a label map holds whole numbers, but some voxels do not; was it interpolated?")
    return array.astype(np.int32)
