"""Between a case's own grid and the canonical grid, always through world coordinates.

A `frame` is a 4×4 matrix that maps canonical coordinates (mm) into a case's world (RAS mm). A voxel o of the canonical
grid with affine G lies at voxel `A⁻¹ · frame · G · o` of a case with affine A.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from biasreg.core.geometry import Geometry


def to_canonical(
    array: np.ndarray, geometry: Geometry, grid: Geometry, frame: np.ndarray, *, fill: float
) -> np.ndarray:
    """Sample an image on the canonical grid, linearly, after low-pass filtering along axes that get coarser.

    Args:
        array: Intensities, shape (X, Y, Z), on `geometry`.
        geometry: Grid of the image.
        grid: The canonical grid.
        frame: (4, 4) canonical mm → world RAS mm of the image.
        fill: Value outside the image's field of view.

    Returns:
        float32 array of the canonical grid's shape.
    """
    matrix = _index_matrix(geometry, grid, frame)
    smooth = ndimage.gaussian_filter(array.astype(np.float32), _smoothing_sigma(matrix), mode="nearest", truncate=3.0)
    sampled: np.ndarray = ndimage.affine_transform(
        smooth, matrix[:3, :3], matrix[:3, 3], output_shape=grid.shape, order=1, mode="nearest"
    )
    sampled[~field_of_view(geometry, grid, frame)] = fill
    return sampled


def labels_to_canonical(
    labels: np.ndarray, geometry: Geometry, grid: Geometry, frame: np.ndarray, values: Sequence[int]
) -> np.ndarray:
    """Sample a label map on the canonical grid: each label linearly, then the strongest wins.

    Args:
        labels: Integer label map, shape (X, Y, Z), on `geometry`.
        geometry: Grid of the label map.
        grid: The canonical grid.
        frame: (4, 4) canonical mm → world RAS mm of the label map.
        values: File value of each foreground label; `values[k]` becomes class k+1, all other values background.

    Returns:
        Array of classes 0..len(values), uint8 (uint16 above 255 classes), of the canonical grid's shape.
    """
    matrix = _index_matrix(geometry, grid, frame)
    sigma = _smoothing_sigma(matrix)
    classes = np.zeros(grid.shape, dtype=np.uint8 if len(values) < 256 else np.uint16)
    best = np.zeros(grid.shape, dtype=np.float32)
    total = np.zeros(grid.shape, dtype=np.float32)
    boxes = ndimage.find_objects(labels.astype(np.int32))
    for index, value in enumerate(values):
        box = boxes[value - 1] if 0 < value <= len(boxes) else None
        if box is None:
            continue
        inner, outer = _label_boxes(box, labels.shape, grid.shape, matrix, sigma)
        membership = ndimage.gaussian_filter((labels[inner] == value).astype(np.float32), sigma, mode="constant")
        start_in = np.array([part.start for part in inner])
        start_out = np.array([part.start for part in outer])
        shape_out = tuple(part.stop - part.start for part in outer)
        offset = matrix[:3, :3] @ start_out + matrix[:3, 3] - start_in
        weight = ndimage.affine_transform(membership, matrix[:3, :3], offset, output_shape=shape_out, order=1)
        total[outer] += weight
        wins = weight > best[outer]
        best[outer][wins] = weight[wins]
        classes[outer][wins] = index + 1
    classes[1 - total > best] = 0
    return classes


def field_of_view(geometry: Geometry, grid: Geometry, frame: np.ndarray) -> np.ndarray:
    """Mark the canonical voxels whose centre lies inside an image's grid (voxels counted with their whole volume).

    Args:
        geometry: Grid of the image.
        grid: The canonical grid.
        frame: (4, 4) canonical mm → world RAS mm of the image.

    Returns:
        Boolean array of the canonical grid's shape.
    """
    matrix = _index_matrix(geometry, grid, frame)
    inside = np.ones(grid.shape, dtype=bool)
    steps = np.ogrid[tuple(slice(size) for size in grid.shape)]
    for axis, size in enumerate(geometry.shape):
        position = matrix[axis, 3] + sum(matrix[axis, other] * steps[other] for other in range(3))
        inside &= (position >= -0.5) & (position <= size - 0.5)
    return inside


def _index_matrix(geometry: Geometry, grid: Geometry, frame: np.ndarray) -> np.ndarray:
    matrix: np.ndarray = np.linalg.inv(geometry.affine) @ frame @ grid.affine
    return matrix


def _smoothing_sigma(matrix: np.ndarray) -> np.ndarray:
    """Standard deviation, in input voxels per axis, that makes up for steps larger than a voxel.

    A voxel of width w acts like a Gaussian of about 0.5 w; from width 1 to width w takes 0.5·√(w² − 1).
    """
    step = np.linalg.norm(matrix[:3, :3], axis=1)
    sigma: np.ndarray = 0.5 * np.sqrt(np.maximum(step**2 - 1, 0))
    return sigma


def _label_boxes(
    box: tuple[slice, ...],
    shape_in: tuple[int, ...],
    shape_out: tuple[int, int, int],
    matrix: np.ndarray,
    sigma: np.ndarray,
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Input box of a label with room for its smoothing, and the output box that it can reach."""
    margin = np.ceil(4 * sigma).astype(int) + 1
    inner = tuple(
        slice(max(0, part.start - pad), min(size, part.stop + pad))
        for part, pad, size in zip(box, margin, shape_in, strict=True)
    )
    corners = np.stack(np.meshgrid(*[(part.start - 1, part.stop) for part in inner], indexing="ij"), -1).reshape(-1, 3)
    reached = (corners - matrix[:3, 3]) @ np.linalg.inv(matrix[:3, :3]).T
    low = np.clip(np.floor(reached.min(axis=0)).astype(int), 0, shape_out)
    high = np.clip(np.ceil(reached.max(axis=0)).astype(int) + 1, 0, shape_out)
    return inner, tuple(slice(int(start), int(stop)) for start, stop in zip(low, high, strict=True))
