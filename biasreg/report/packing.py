"""Volumes made small enough for a page: cropped, shrunk, quantised and compressed."""

import base64
import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from biasreg.evaluation.figures import WINDOW_PERCENTILES
from biasreg.planning.foreground import bounding_box
from biasreg.report.volumes import PairVolumes

FAINT_SHARE = 0.02
"""Share of the window below which a voxel counts as empty when margins are cut off."""
MARGIN_VOXELS = 3
LONGEST_SIDE = 128
FIELD_SIDE = 64
"""Longest side of a stored field: it is smooth, and three numbers per voxel are dear."""
FIELD_STEPS_PER_VOXEL = 20
"""A displacement is kept to this part of the smallest voxel side: far below what can be seen."""
LARGEST_INT16 = 32_000
DETERMINANT_STEPS = 127
"""Steps between a determinant of 0 and of 1; 2 is the largest that is told apart, the byte 0 means folding."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Blob:
    """A compressed array.

    Attributes:
        name: What it is.
        data: Base64 of the gzipped bytes: each value less the one before, wrapping; x fastest, then y, z, component.
    """

    name: str
    data: str


@dataclass(frozen=True)
class PackedPair:
    """A pair for the viewer.

    Attributes:
        meta: Shapes, units and ranges, plain JSON data.
        blobs: Its volumes.
    """

    meta: dict[str, Any]
    blobs: tuple[Blob, ...]


def pack_pair(volumes: PairVolumes, voxels: int, longest_side: int = LONGEST_SIDE) -> PackedPair:
    """Make a pair small.

    Args:
        volumes: The pair.
        voxels: At most about this many voxels are kept.
        longest_side: No side has more voxels than this.

    Returns:
        The pair: images in 8 bits between percentiles, the displacement in mm along the grid's axes, the determinant as
        `DETERMINANT_STEPS` says. Shrunk voxels are means; one folds where any voxel in it does.
    """
    box = _occupied_box(volumes)
    full = tuple(part.stop - part.start for part in box)
    shape = _shrunk_shape(full, voxels, longest_side)
    moving_window = window(volumes.moving)
    determinant = volumes.determinant[box]
    steps_mm = np.array(volumes.grid.spacing, dtype=np.float32).reshape(3, 1, 1, 1)
    field = _mean(volumes.displacement[(slice(None), *box)] * steps_mm, _shrunk_shape(shape, voxels, FIELD_SIDE))
    step = max(min(volumes.grid.spacing) / FIELD_STEPS_PER_VOXEL, float(np.abs(field).max()) / LARGEST_INT16)
    blobs = [
        _blob("fixed", _quantised(_mean(volumes.fixed[box], shape), window(volumes.fixed))),
        _blob("moving", _quantised(_mean(volumes.moving[box], shape), moving_window)),
        _blob("warped", _quantised(_mean(volumes.warped[box], shape), moving_window)),
        _blob("determinant", _packed_determinant(determinant, shape)),
        _blob("displacement", np.rint(field / step).astype("<i2")),
    ]
    maps = {name: getattr(volumes, name) for name in ("fixed_labels", "moving_labels", "warped_labels")}
    known = {name: _nearest(array[box], shape) for name, array in maps.items() if array is not None}
    values, classes = _numbered(known)
    meta = {
        "shape": list(shape),
        "spacing": [step * many / few for step, many, few in zip(volumes.grid.spacing, full, shape, strict=True)],
        "fieldShape": list(field.shape[1:]),
        "fieldStep": step,
        "labels": values,
        "start": [_central(known.get("fixed_labels"), axis, size) for axis, size in enumerate(shape)],
        "longest": float(np.sqrt((field**2).sum(axis=0)).max()),
        "folding": 100.0 * float(np.mean(~(determinant > 0))),
        "reduced": shape != full,
        "native": list(volumes.grid.shape),
    }
    return PackedPair(meta, (*blobs, *(_blob(name, array) for name, array in classes.items())))


def _numbered(maps: Mapping[str, NDArray]) -> tuple[list[int], dict[str, NDArray]]:
    """Give the values that occur, and the maps with the number of each value, from 1; one byte where that is enough."""
    values = sorted({int(value) for array in maps.values() for value in np.unique(array)} - {0})
    kind = "<u1" if len(values) < 256 else "<u2"
    return values, {name: np.searchsorted([0, *values], array).astype(kind) for name, array in maps.items()}


def _occupied_box(volumes: PairVolumes) -> tuple[slice, slice, slice]:
    """Box around all that is not as dark as the background, in any of the three images, and around all labels."""
    occupied = np.zeros(volumes.fixed.shape, dtype=bool)
    for image in (volumes.fixed, volumes.moving, volumes.warped):
        lower, upper = window(image)
        occupied |= image > lower + FAINT_SHARE * (upper - lower)
    for labels in (volumes.fixed_labels, volumes.warped_labels):
        occupied |= False if labels is None else labels > 0
    if not occupied.any():
        occupied[:] = True
    ranges = zip(bounding_box(occupied), volumes.grid.shape, strict=True)
    box = [slice(max(0, start - MARGIN_VOXELS), min(size, stop + MARGIN_VOXELS)) for (start, stop), size in ranges]
    return box[0], box[1], box[2]


def _shrunk_shape(shape: Shape, voxels: int, longest_side: int) -> Shape:
    """Shrink the long sides until no side and no volume is too large; thick slices are not thinned out."""
    side = min(longest_side, max(shape))
    while side > 1 and int(np.prod([min(size, side) for size in shape])) > voxels:
        side -= 1
    return tuple(min(size, side) for size in shape)


def _mean(array: NDArray, shape: Shape) -> NDArray[np.float32]:
    """Mean over the voxels that fall into each voxel of a coarser grid; (..., X, Y, Z)."""
    if array.shape[-3:] == shape:
        return np.asarray(array, dtype=np.float32)
    volume = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    return F.adaptive_avg_pool3d(volume[None], (shape[0], shape[1], shape[2]))[0].numpy()


def _nearest(labels: NDArray, shape: Shape) -> NDArray:
    index = [
        ((np.arange(few) + 0.5) * many / few).astype(np.intp) for few, many in zip(shape, labels.shape, strict=True)
    ]
    return labels[np.ix_(*index)]


def window(image: NDArray) -> tuple[float, float]:
    """Intensities that are shown black and white, as in other pictures of pairs.

    Args:
        image: (X, Y, Z).
    """
    lower, upper = np.percentile(image, WINDOW_PERCENTILES)
    return float(lower), float(upper) if upper > lower else float(lower) + 1.0


def _quantised(image: NDArray, limits: tuple[float, float]) -> NDArray[np.uint8]:
    lower, upper = limits
    return np.rint(np.clip((image - lower) / (upper - lower), 0, 1) * 255).astype(np.uint8)


def _packed_determinant(determinant: NDArray, shape: Shape) -> NDArray[np.uint8]:
    folded = ~(determinant > 0)
    values = _mean(np.nan_to_num(np.clip(determinant, 0, 2), nan=0.0), shape)
    packed = 1 + np.rint(values * DETERMINANT_STEPS).astype(np.uint8)
    packed[_mean(folded, shape) > 0] = 0
    return packed


def _central(labels: NDArray | None, axis: int, size: int) -> int:
    """Slice through the middle of the labels, or of the grid."""
    if labels is None or not labels.any():
        return size // 2
    return round(float(np.nonzero(labels)[axis].mean()))


def _blob(name: str, array: NDArray) -> Blob:
    components = array if array.ndim == 4 else array[None]
    values = np.concatenate([component.ravel(order="F") for component in components])
    steps = np.diff(values, prepend=values[:1] * 0)  # neighbours are alike, and so smaller when compressed
    return Blob(name, base64.b64encode(gzip.compress(steps.tobytes(), 9, mtime=0)).decode("ascii"))
