"""Between a case's own grid and the canonical grid, always through world coordinates.

A `frame` is a 4×4 matrix that maps canonical coordinates (mm) into a case's world (RAS mm). A voxel o of the canonical
grid with affine G lies at voxel `A⁻¹ · frame · G · o` of a case with affine A.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from biasreg.core.geometry import Geometry
from biasreg.core.label_boxes import label_boxes

HALF_VOXEL = 0.5 + 1e-6  # a sample on the very edge is inside, whichever way it is rounded


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


def shrink(array: np.ndarray, geometry: Geometry, spacing_mm: float) -> tuple[np.ndarray, Geometry]:
    """Average blocks of whole voxels, as large as stay within a voxel size: a quick first step to a coarse grid.

    Args:
        array: Intensities, shape (X, Y, Z), on `geometry`; left-over voxels at the end of an axis are cut off.
        geometry: Grid of the image.
        spacing_mm: Largest side of a block.

    Returns:
        The means, float32, and their grid.
    """
    factors = [
        max(1, min(int(spacing_mm / step), size)) for step, size in zip(geometry.spacing, geometry.shape, strict=True)
    ]
    counts = [size // factor for size, factor in zip(geometry.shape, factors, strict=True)]
    cut = array[tuple(slice(count * factor) for count, factor in zip(counts, factors, strict=True))]
    blocks = cut.reshape([number for pair in zip(counts, factors, strict=True) for number in pair])
    to_fine = np.diag([*map(float, factors), 1.0])
    to_fine[:3, 3] = (np.array(factors) - 1) / 2  # the middle of a block
    means: np.ndarray = blocks.mean(axis=(1, 3, 5), dtype=np.float32)
    return means, Geometry.from_affine(geometry.affine @ to_fine, counts)


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
    classes = np.zeros(grid.shape, dtype=class_type(len(values)))
    best = np.zeros(grid.shape, dtype=np.float32)
    total = np.zeros(grid.shape, dtype=np.float32)
    boxes = label_boxes(labels, values)
    for index, value in enumerate(values):
        if value not in boxes:
            continue
        inner, outer = _reached_boxes(boxes[value], labels.shape, grid.shape, matrix, sigma)
        # Beyond the image's border a label goes on, as the image does; the field of view ends it half a voxel further.
        membership = ndimage.gaussian_filter((labels[inner] == value).astype(np.float32), sigma, mode="nearest")
        start_in = np.array([part.start for part in inner])
        start_out = np.array([part.start for part in outer])
        shape_out = tuple(part.stop - part.start for part in outer)
        offset = matrix[:3, :3] @ start_out + matrix[:3, 3] - start_in
        weight = ndimage.affine_transform(
            membership, matrix[:3, :3], offset, output_shape=shape_out, order=1, mode="nearest"
        )
        total[outer] += weight
        wins = weight > best[outer]
        best[outer][wins] = weight[wins]
        classes[outer][wins] = index + 1
    classes[(1 - total > best) | ~field_of_view(geometry, grid, frame)] = 0
    return classes


def class_type(count: int) -> np.dtype:
    """Choose the type of class maps.

    Args:
        count: Number of foreground classes.

    Returns:
        uint8, or uint16 above 255.
    """
    return np.dtype(np.uint8 if count < 256 else np.uint16)


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
        inside &= (position >= -HALF_VOXEL) & (position <= size - 1 + HALF_VOXEL)
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


def _reached_boxes(
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
