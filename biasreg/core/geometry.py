"""Grids of voxels in world space: shape, spacing, origin and direction, in RAS+ millimetres."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from biasreg.core.errors import GeometryError

FloatArray = npt.NDArray[np.floating[Any]]

ORTHONORMALITY_TOLERANCE = 1e-3
"""Largest cosine between two axes that still counts as a right angle; float32 headers round off near 1e-6."""

CLOSENESS_TOLERANCE_MM = 1e-3
"""Distance of corners below which two grids are the same; far below any voxel size, far above float32 round-off."""

_AXIS_LETTERS = ("LR", "PA", "IS")  # negative and positive direction of each world axis
_LPS_SIGNS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Geometry:
    """Where a grid of voxels lies in the world (RAS+, mm).

    Voxel (i, j, k) has its centre at `origin + direction @ (spacing * (i, j, k))`.

    Attributes:
        shape: Number of voxels along each array axis.
        spacing: Distance of neighbouring voxel centres along each array axis, in mm, positive.
        origin: World position of the centre of voxel (0, 0, 0), in mm.
        direction: 3×3 matrix as rows; column a is the unit vector of array axis a. Left-handed grids are allowed.

    Raises:
        GeometryError: Something is not finite or not positive, or the axes are not at right angles.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[tuple[float, float, float], ...]

    def __post_init__(self) -> None:
        """Refuse grids that cannot exist."""
        matrix = np.array(self.direction, dtype=np.float64)
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise GeometryError(f"a grid needs three positive side lengths, got shape {self.shape}")
        if len(self.spacing) != 3 or not np.all(np.isfinite(self.spacing)) or min(self.spacing) <= 0:
            raise GeometryError(f"voxel sizes must be finite and positive, got spacing {self.spacing}")
        if len(self.origin) != 3 or matrix.shape != (3, 3) or not np.all(np.isfinite([*self.origin, *matrix.flat])):
            raise GeometryError(f"origin {self.origin} and direction {self.direction} must be 3 and 3×3 finite numbers")
        _check_orthonormal(matrix)

    @classmethod
    def from_affine(cls, affine: npt.ArrayLike, shape: Sequence[int]) -> "Geometry":
        """Take a voxel-to-world matrix apart.

        Args:
            affine: (4, 4), maps voxel indices to RAS+ mm.
            shape: Three side lengths in voxels.

        Raises:
            GeometryError: The matrix is non-finite, singular or sheared.
        """
        matrix = np.asarray(affine, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.all(np.isfinite(matrix)):
            raise GeometryError(f"the voxel-to-world matrix must be 4×4 finite numbers, got {matrix.tolist()}")
        spacing = np.linalg.norm(matrix[:3, :3], axis=0)
        if np.any(spacing <= np.finfo(np.float32).tiny):
            raise GeometryError(f"the voxel-to-world matrix is singular (an axis has no length): {matrix.tolist()}")
        return cls(
            shape=(int(shape[0]), int(shape[1]), int(shape[2])),
            spacing=_triple(spacing),
            origin=_triple(matrix[:3, 3]),
            direction=tuple(_triple(row) for row in matrix[:3, :3] / spacing),
        )

    @classmethod
    def centered(cls, shape: Sequence[int], spacing: Sequence[float]) -> "Geometry":
        """Return the grid with RAS axes whose centre lies at the world's origin.

        Args:
            shape: Three side lengths in voxels.
            spacing: Three voxel sizes in mm.
        """
        origin = [-0.5 * (n - 1) * float(size) for n, size in zip(shape, spacing, strict=True)]
        matrix = np.diag([*map(float, spacing), 1.0])
        matrix[:3, 3] = origin
        return cls.from_affine(matrix, shape)

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """(4, 4) float64 matrix from voxel indices to RAS+ mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.array(self.direction) * np.array(self.spacing)
        matrix[:3, 3] = self.origin
        return matrix

    @property
    def center(self) -> npt.NDArray[np.float64]:
        """(3,) world position of the middle of the grid, in mm."""
        return apply_affine(self.affine, (np.array(self.shape) - 1) / 2)

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Length of the grid along each array axis, whole voxels counted, in mm."""
        return _triple(np.array(self.shape) * np.array(self.spacing))

    @property
    def corners(self) -> npt.NDArray[np.float64]:
        """(8, 3) world positions of the centres of the corner voxels, in mm."""
        return apply_affine(self.affine, np.array(list(product(*((0, n - 1) for n in self.shape)))))

    def is_close(self, other: "Geometry", tolerance_mm: float = CLOSENESS_TOLERANCE_MM) -> bool:
        """Tell whether two grids have the same shape and corners that agree within `tolerance_mm`."""
        if self.shape != other.shape:
            return False
        return bool(np.linalg.norm(self.corners - other.corners, axis=1).max() <= tolerance_mm)

    def describe(self) -> str:
        """Return shape, spacing, origin and axes in one short line, for messages."""
        size = "×".join(str(n) for n in self.shape)
        spacing = "×".join(f"{value:.4g}" for value in self.spacing)
        origin = ", ".join(f"{value:.4g}" for value in self.origin)
        return f"{size} voxels of {spacing} mm at ({origin}) RAS, axes {orientation_code(self)}"


def apply_affine(matrix: npt.ArrayLike, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Map points: `matrix[:3, :3] @ p + matrix[:3, 3]`.

    Args:
        matrix: (4, 4).
        points: (..., 3).

    Returns:
        (..., 3) float64.
    """
    affine = np.asarray(matrix, dtype=np.float64)
    mapped: npt.NDArray[np.float64] = np.asarray(points, dtype=np.float64) @ affine[:3, :3].T + affine[:3, 3]
    return mapped


def world_box(
    geometry: Geometry, box: Sequence[tuple[int, int]]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Find the world-aligned box around an index box.

    Args:
        geometry: The grid.
        box: Half-open index range per axis; voxels count with their whole volume.

    Returns:
        Centre (RAS mm) and side lengths (mm) along the world's axes.
    """
    corners = index_corners(geometry, box)
    low, high = corners.min(axis=0), corners.max(axis=0)
    return _triple((low + high) / 2), _triple(high - low)


def mask_box(geometry: Geometry, mask: np.ndarray) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Find the world-aligned box around the true voxels of a mask; of an oblique one, not around their index box.

    Args:
        geometry: The grid.
        mask: Boolean array on it, with at least one true voxel; voxels count with their whole volume.

    Returns:
        Centre (RAS mm) and side lengths (mm) along the world's axes.
    """
    hit = mask.any(axis=2)
    first, last = mask.argmax(axis=2)[hit], mask.shape[2] - 1 - mask[:, :, ::-1].argmax(axis=2)[hit]
    columns = np.argwhere(hit)  # along any direction the outermost voxels are ends of their columns
    ends = np.concatenate([np.column_stack([columns, end]) for end in (first, last)])
    points = apply_affine(geometry.affine, ends)
    half = np.abs(geometry.affine[:3, :3]).sum(axis=1) / 2
    low, high = points.min(axis=0) - half, points.max(axis=0) + half
    return _triple((low + high) / 2), _triple(high - low)


def index_corners(geometry: Geometry, box: Sequence[tuple[int, int]]) -> np.ndarray:
    """Find the corners of an index box in the world.

    Args:
        geometry: The grid.
        box: Half-open index range per axis; voxels count with their whole volume.

    Returns:
        (8, 3), RAS mm.
    """
    edges = [(start - 0.5, stop - 0.5) for start, stop in box]
    corners = np.stack(np.meshgrid(*edges, indexing="ij"), axis=-1).reshape(-1, 3)
    return apply_affine(geometry.affine, corners)


def orientation_code(geometry: Geometry) -> str:
    """Return the closest anatomical direction of each array axis, for example `RAS` or `LPS`."""
    cosines = np.abs(np.array(geometry.direction))
    letters = [""] * 3
    for _ in range(3):  # the clearest pair of world and array axis first, each axis once
        world, axis = np.unravel_index(int(cosines.argmax()), cosines.shape)
        letters[axis] = _AXIS_LETTERS[world][int(geometry.direction[world][axis] > 0)]
        cosines[world, :] = cosines[:, axis] = -1.0
    return "".join(letters)


def ras_to_lps(vectors: npt.ArrayLike) -> FloatArray:
    """Turn RAS vectors or points into LPS ones; the same function turns them back.

    Args:
        vectors: (..., 3).

    Returns:
        (..., 3), floating type kept (integers become float64).
    """
    array = np.asarray(vectors)
    dtype = array.dtype if array.dtype.kind == "f" else np.dtype(np.float64)
    result: FloatArray = array * _LPS_SIGNS.astype(dtype)
    return result


def _check_orthonormal(matrix: npt.NDArray[np.float64]) -> None:
    lengths = np.linalg.norm(matrix, axis=0)
    if np.abs(lengths - 1).max() > ORTHONORMALITY_TOLERANCE:
        raise GeometryError(f"the axes' directions must be unit vectors, got lengths {lengths.tolist()}")
    cosines = np.abs(matrix.T @ matrix - np.diag(lengths**2))
    if cosines.max() > ORTHONORMALITY_TOLERANCE:
        first, second = np.unravel_index(int(cosines.argmax()), (3, 3))
        degrees = np.degrees(np.arccos(np.clip(matrix[:, first] @ matrix[:, second], -1, 1)))
        raise GeometryError(
            f"the grid is sheared: array axes {first} and {second} meet at {degrees:.2f}° instead of 90°;"
            " resample the image to a grid with right angles"
        )


def _triple(values: npt.ArrayLike) -> tuple[float, float, float]:
    first, second, third = np.asarray(values, dtype=np.float64).tolist()
    return (first, second, third)
