"""Explain a transform file in plain words, and test what can be tested of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from biasreg.core.check_lines import CheckLine, Verdict
from biasreg.core.errors import TransformError
from biasreg.core.geometry import Geometry, apply_affine, ras_to_lps
from biasreg.core.image_io import Image, read_image
from biasreg.core.series_io import read_grid
from biasreg.core.transform_forms import holds_positions, likely_origin
from biasreg.core.transforms import FieldPart, LinearPart, Part, default_reference, read_transform
from biasreg.evaluation.metrics import field_metrics
from biasreg.inference.transform_readings import AS_READ, IDENTITY, similarity_of_readings
from biasreg.spatial.transform_chain import (
    Composed,
    compose,
    grid_sample_points,
    invert_parts,
    map_points,
    round_trip_mm,
)

SIDE_MM = 200.0
"""Side of the cube around the world's origin on which a matrix is looked at without a reference."""

FOLDING_WARN_PERCENT, FOLDING_FAIL_PERCENT = 0.1, 10.0
"""Registrations fold at some voxels; one that folds at every tenth is not one, or its numbers mean something else."""

ROUND_TRIP_WARN_VOXELS, ROUND_TRIP_FAIL_VOXELS = 0.1, 1.0  # 95th percentile
STRETCH = (0.5, 2.0)  # beyond these a matrix halves or doubles a length, as no two people differ
POSITION_LIKENESS = 0.3  # of the slope of d(p) to that of p itself
REACH_WARN = 0.5  # share of the reference that should be found in the moving image
LIKELIER = 1.1  # times the similarity as it is read, from which another reading is suspected
STILL_VOXELS = 0.01  # below which nothing is displaced

_TEST_POINTS = 200_000
_CUBE_VOXELS = 21


@dataclass(frozen=True)
class Displacements:
    """How far a transform takes points, in mm.

    Attributes:
        mean: Mean length.
        percentile95: 95th percentile of the lengths.
        largest: Largest length.
    """

    mean: float
    percentile95: float
    largest: float


@dataclass(frozen=True)
class TransformReport:
    """What is to be said of a transform file.

    Attributes:
        path: The file.
        explanation: What it is, in sentences.
        displacements: How far it takes points; None if it cannot be used.
        lines: The answers of the tests.
    """

    path: str
    explanation: tuple[str, ...]
    displacements: Displacements | None
    lines: tuple[CheckLine, ...]

    @property
    def failed(self) -> bool:
        """Whether a test failed."""
        return any(line.verdict == "FAIL" for line in self.lines)


def check_transform(path: Path, reference: Path | None = None, moving: Path | None = None) -> TransformReport:
    """Explain and test a transform file.

    Args:
        path: The file, in any form that `core/transforms.py` reads.
        reference: The fixed image, if its fit is to be tested.
        moving: The moving image, if the reach into it is to be tested.

    Returns:
        The report; a file that can be read but must not be used gives one with a FAIL.

    Raises:
        ImageError: The transform or an image cannot be read.
        GeometryError: A grid is unusable.
    """
    grids = tuple(None if image is None else read_grid(image) for image in (reference, moving))
    try:
        parts = read_transform(path)
    except TransformError as error:
        text = str(error).removeprefix(f"{path}: ")
        hint = likely_origin(path)
        return TransformReport(
            str(path), (), None, (CheckLine("form", "FAIL", text + (f". Perhaps: {hint}" if hint else "")),)
        )
    grid = grids[0] or default_reference(parts) or _cube()
    composed = compose(parts, grid)
    lengths = np.linalg.norm(composed.displacement, axis=-1)
    sizes = Displacements(float(lengths.mean()), float(np.percentile(lengths, 95)), float(lengths.max()))
    inverse = invert_parts(parts)
    lines = [
        _form_line(path, parts),
        CheckLine("finite", "PASS", "all numbers are finite"),
        *(_matrix_line(part) for part in parts if isinstance(part, LinearPart)),
        _size_line(sizes, composed, parts),
        _folding_line(composed),
        _round_trip_line(parts, inverse, grid),
        *_reference_lines(parts, grids[0]),
        *_moving_lines(composed, grids[1]),
    ]
    if reference is not None and moving is not None:
        lines.append(_reading_line(parts, inverse, read_image(reference), read_image(moving)))
    return TransformReport(str(path), _explanation(parts, grid, grids[0], sizes), sizes, tuple(lines))


def _cube() -> Geometry:
    return Geometry.centered((_CUBE_VOXELS,) * 3, (SIDE_MM / (_CUBE_VOXELS - 1),) * 3)


def _explanation(
    parts: Sequence[Part], grid: Geometry, reference: Geometry | None, sizes: Displacements
) -> tuple[str, ...]:
    fields = sum(isinstance(part, FieldPart) for part in parts)
    what = f"A transform of {len(parts)} part(s): {fields} displacement field(s), {len(parts) - fields} matrix(es)."
    named = [
        f"Part {number}, met {_ordinal(number)} by a fixed point: {_describe(p)}" for number, p in enumerate(parts, 1)
    ]
    where = "the fixed image" if reference else "its grid" if default_reference(tuple(parts)) else "a cube of 200 mm"
    start = grid.center
    end = map_points(parts, start[None]).points[0]
    return (
        what,
        *named,
        "A fixed point p is found at T(p) in the moving image. Images come from the moving to the fixed grid by it; "
        "points go from the fixed to the moving image.",
        f"Points of {where} are displaced by {sizes.mean:.2f} mm on average, 95 % by at most {sizes.percentile95:.2f} "
        f"mm, the farthest by {sizes.largest:.2f} mm.",
        f"Example, the centre of {where}: {_point(ras_to_lps(start))} is found at {_point(ras_to_lps(end))} in LPS mm "
        f"(ITK, ANTs, DICOM), which is {_point(start)} at {_point(end)} in RAS mm (NIfTI headers, nibabel).",
    )


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"as number {number}")


def _describe(part: Part) -> str:
    if isinstance(part, FieldPart):
        return f"{part.kind} on {part.geometry.describe()}; components in LPS mm in the file."
    if not isinstance(part, LinearPart):
        return f"{part.kind}."
    return (
        f"{part.kind}, a matrix in LPS mm; it takes the world's origin to {_point(ras_to_lps(part.matrix[:3, 3]))} LPS."
    )


def _point(position: NDArray) -> str:
    return "(" + ", ".join(f"{value + 0.0:.2f}" for value in position) + ")"


def _form_line(path: Path, parts: Sequence[Part]) -> CheckLine:
    if program := holds_positions(path):
        return CheckLine(
            "form", "FAIL", f"the header says that {program} wrote absolute positions, not displacements; convert it"
        )
    kinds = ", then ".join(part.kind for part in parts)
    return CheckLine("form", "PASS", f"ITK's meaning can be read off the file without doubt: {kinds}")


def _matrix_line(part: LinearPart) -> CheckLine:
    linear = part.matrix[:3, :3]
    left, stretch, right = np.linalg.svd(linear)
    turn = np.degrees(np.arccos(np.clip((np.trace(left @ right) - 1) / 2, -1, 1)))
    text = (
        f"{part.kind} turns by {turn:.1f}°, stretches by {stretch[-1]:.3f} to {stretch[0]:.3f}, changes volumes "
        f"{np.linalg.det(linear):.3f}-fold; it neither mirrors nor is singular"
    )
    usual = STRETCH[0] <= stretch[-1] and stretch[0] <= STRETCH[1]
    return CheckLine("matrix", "PASS" if usual else "WARN", text + ("" if usual else "; no two people differ so much"))


def _size_line(sizes: Displacements, composed: Composed, parts: Sequence[Part]) -> CheckLine:
    grid = composed.geometry
    text = f"mean {sizes.mean:.2f} mm, 95 % below {sizes.percentile95:.2f} mm, largest {sizes.largest:.2f} mm"
    slope = _slope(composed)
    if any(isinstance(part, FieldPart) for part in parts) and np.abs(np.abs(slope) - 1).max() < POSITION_LIKENESS:
        return CheckLine(
            *("size", "FAIL"),
            f"{text}; displacements grow as the positions do: the file seems to hold absolute positions (SPM, "
            "NiftyReg), not displacements",
        )
    if sizes.largest < STILL_VOXELS * min(grid.spacing):
        return CheckLine("size", "WARN", f"{text}; that is no transform at all: is it in metres, or the wrong file?")
    if sizes.mean > max(grid.extent_mm):
        return CheckLine(
            "size", "WARN", f"{text}; that is farther than the grid is long ({max(grid.extent_mm):.0f} mm)"
        )
    return CheckLine("size", "PASS", text)


def _slope(composed: Composed) -> NDArray[np.float64]:
    """Slope of each component of d along its own axis of the world, 1 or -1 for absolute positions."""
    points, ends = _some_points(composed, 30)
    rows = np.column_stack([points - points.mean(axis=0), np.ones(len(points))])
    return np.asarray(np.diag(np.linalg.lstsq(rows, ends - points, rcond=None)[0][:3]), dtype=np.float64)


def _some_points(composed: Composed, per_axis: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Voxel centres of a regular part of the grid, about so many per axis, and where they are taken; (N, 3), RAS mm."""
    x, y, z = (np.arange(0, size, max(1, size // per_axis)) for size in composed.geometry.shape)
    voxels = np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1).reshape(-1, 3)
    points = apply_affine(composed.geometry.affine, voxels)
    return points, points + composed.displacement[np.ix_(x, y, z)].reshape(-1, 3)


def _folding_line(composed: Composed) -> CheckLine:
    if min(composed.geometry.shape) < 2:
        return CheckLine("folding", "WARN", "cannot be measured: an axis of the grid has one voxel")
    percent = field_metrics(composed.displacement, composed.geometry).folding_percent
    verdict: Verdict = "PASS" if percent <= FOLDING_WARN_PERCENT else "WARN"
    if percent > FOLDING_FAIL_PERCENT:
        verdict = "FAIL"
    return CheckLine("folding", verdict, f"{percent:.3g} % of the voxels fold (determinant of the Jacobian 0 or less)")


def _round_trip_line(parts: Sequence[Part], inverse: Sequence[Part], grid: Geometry) -> CheckLine:
    errors = round_trip_mm(parts, inverse, grid_sample_points(grid, _TEST_POINTS))
    p95, voxel = float(np.percentile(errors, 95)), min(grid.spacing)
    verdict: Verdict = "PASS" if p95 <= ROUND_TRIP_WARN_VOXELS * voxel else "WARN"
    if p95 > ROUND_TRIP_FAIL_VOXELS * voxel:
        verdict = "FAIL"
    return CheckLine(
        *("there and back", verdict),
        f"through the transform and its inverse a point ends {errors.mean():.3g} mm from its start on average, 95 % "
        f"within {p95:.3g} mm, the farthest {errors.max():.3g} mm",
    )


def _reference_lines(parts: Sequence[Part], reference: Geometry | None) -> list[CheckLine]:
    if reference is None:
        return []
    grid = default_reference(tuple(parts))
    if grid is None:
        return [CheckLine("reference", "PASS", "a transform that begins with a matrix fits any reference")]
    if grid.is_close(reference):
        return [CheckLine("reference", "PASS", "the field lies on the grid of the reference")]
    points = grid_sample_points(reference, _TEST_POINTS)
    outside = map_points(parts[:1], points).outside[0] / len(points)
    text = (
        f"the field lies on {grid.describe()}, the reference on {reference.describe()}; {100 * outside:.1f} % of the "
    )
    text += "reference lies outside the field"
    if outside == 1:
        return [CheckLine("reference", "FAIL", f"{text}; it belongs to another image, or the way is the other one")]
    return [CheckLine("reference", "WARN" if outside > 0 else "PASS", text)]


def _moving_lines(composed: Composed, moving: Geometry | None) -> list[CheckLine]:
    if moving is None:
        return []
    found = apply_affine(np.linalg.inv(moving.affine), _some_points(composed, 60)[1])
    share = float(((found >= -0.5) & (found < np.array(moving.shape) - 0.5)).all(axis=-1).mean())
    text = f"{100 * share:.1f} % of the points are found within the moving image"
    if share == 0:
        return [
            CheckLine("moving", "FAIL", f"{text}; are fixed and moving swapped, or does it belong to another image?")
        ]
    return [CheckLine("moving", "PASS" if share >= REACH_WARN else "WARN", text)]


def _reading_line(parts: Sequence[Part], inverse: Sequence[Part], reference: Image, moving: Image) -> CheckLine:
    found = similarity_of_readings(parts, inverse, reference, moving)
    values = "; ".join(f"{name}: {value:.3f}" for name, value in found.items())
    best = max(found, key=lambda name: found[name])
    text = f"mutual information of reference and moving image, {values}"
    if best == AS_READ or found[best] <= LIKELIER * found[AS_READ]:
        return CheckLine("reading", "PASS", text)
    advice = "registration has made it worse" if best == IDENTITY else "suspect that the file is meant so"
    return CheckLine("reading", "WARN", f"{text}. The images are more alike {best}: {advice}")
