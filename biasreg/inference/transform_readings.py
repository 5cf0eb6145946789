"""Compare a transform as it is read with what it would be if it were misread, by how alike it makes two images."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from biasreg.core.geometry import Geometry, apply_affine, ras_to_lps
from biasreg.core.image_io import Image
from biasreg.core.transforms import FieldPart, LinearPart, Part
from biasreg.spatial.transform_chain import grid_sample_points, map_points
from biasreg.spatial.warp import sample

AS_READ = "as it is"
FLIPPED = "with x and y negated (RAS components stored as if LPS)"
IN_VOXELS = "with voxels for mm (components along the array axes)"
INVERTED = "the other way round (its inverse)"
IDENTITY = "no transform at all"

_POINTS = 100_000
_BINS = 32
_CLIPPED_PERCENT = 0.5


def similarity_of_readings(
    parts: Sequence[Part], inverse: Sequence[Part], reference: Image, moving: Image
) -> dict[str, float]:
    """Measure the mutual information of reference and moving image, for each way to read a transform.

    Args:
        parts: The chain as it is read.
        inverse: Its inverse.
        reference: The fixed image.
        moving: The moving image.

    Returns:
        Nats, at least 0, by reading.
    """
    points = grid_sample_points(reference.geometry, _POINTS)
    readings: dict[str, Sequence[Part]] = {AS_READ: parts, FLIPPED: [_flipped(part) for part in parts]}
    if len(parts) == 1 and isinstance(parts[0], FieldPart):
        readings[IN_VOXELS] = (_in_voxels(parts[0]),)
    readings |= {INVERTED: inverse, IDENTITY: ()}
    fixed_values = _values(reference, points)
    return {
        name: mutual_information(fixed_values, _values(moving, map_points(chain, points).points))
        for name, chain in readings.items()
    }


def mutual_information(first: NDArray, second: NDArray) -> float:
    """Mutual information of two samples, from their histogram of 32 × 32 bins between the outermost 0.5 %.

    Args:
        first: (N,).
        second: (N,).

    Returns:
        Nats, at least 0.
    """
    joint = np.histogram2d(_clipped(first), _clipped(second), bins=_BINS)[0]
    joint /= joint.sum()
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    filled = joint > 0
    return max(0.0, float((joint[filled] * np.log(joint[filled] / independent[filled])).sum()))


def _clipped(values: NDArray) -> NDArray:
    return np.clip(values, *np.percentile(values, [_CLIPPED_PERCENT, 100 - _CLIPPED_PERCENT]))


def _values(image: Image, points: NDArray) -> NDArray:
    voxels = apply_affine(np.linalg.inv(image.geometry.affine), points)
    coordinates = torch.from_numpy(np.ascontiguousarray(voxels.T, dtype=np.float32))[None, :, :, None, None]
    volume = torch.from_numpy(np.ascontiguousarray(image.array, dtype=np.float32))[None, None]
    return sample(volume, coordinates, padding=float(image.array.min()))[0, 0, :, 0, 0].numpy()


def _flipped(part: Part) -> Part:
    sign = np.diag([-1.0, -1.0, 1.0, 1.0])
    if isinstance(part, LinearPart):
        return LinearPart(sign @ part.matrix @ sign, part.kind, part.source)
    return _with_displacement(part, ras_to_lps(part.displacement)) if isinstance(part, FieldPart) else part


def _in_voxels(part: FieldPart) -> FieldPart:
    stored = ras_to_lps(part.displacement)  # the numbers in the file
    return _with_displacement(part, stored @ _axes(part.geometry).T)


def _axes(geometry: Geometry) -> NDArray:
    return geometry.affine[:3, :3].astype(np.float32)


def _with_displacement(part: FieldPart, displacement: NDArray) -> FieldPart:
    return FieldPart(displacement.astype(np.float32), part.geometry, part.kind, part.source)
