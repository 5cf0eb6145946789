"""Pairs, references and predictions on disk, small enough to know their scores by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from biasreg.core.geometry import Geometry
from biasreg.core.image_io import write_image
from biasreg.core.points_io import Points, write_points
from biasreg.core.transform_io import write_displacement
from biasreg.evaluation.records import LabelScore, PairScores

GRID = Geometry.from_affine(np.diag([1.0, 1.0, 1.0, 1.0]), (16, 14, 12))


def box(geometry: Geometry, low_mm, high_mm) -> np.ndarray:
    """Voxels whose centre lies in a box of the world, so that one box can be drawn on any grid."""
    indices = np.moveaxis(np.indices(geometry.shape), 0, -1)
    points = indices @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]
    return np.all((points > low_mm) & (points < high_mm), axis=-1)


@dataclass
class Workspace:
    """Writes references and predictions into two folders."""

    references: Path
    predictions: Path

    def write_pair(self, name: str, moving, fixed, moving_grid: Geometry = GRID, fixed_grid: Geometry = GRID) -> None:
        """Write label maps of a pair; the images are their float copies. A label map of None leaves it out."""
        for role, labels, grid in (("moving", moving, moving_grid), ("fixed", fixed, fixed_grid)):
            image = np.zeros(grid.shape) if labels is None else labels
            write_image(self.references / f"{name}_{role}.nii.gz", image.astype(np.float32), grid)
            if labels is not None:
                write_image(self.references / f"{name}_{role}_seg.nii.gz", labels.astype(np.uint8), grid)

    def write_points(self, name: str, moving: Points, fixed: Points) -> None:
        write_points(self.references / f"{name}_moving_points.csv", moving)
        write_points(self.references / f"{name}_fixed_points.csv", fixed)

    def write_shift(self, name: str, shift_mm, grid: Geometry = GRID, folder: Path | None = None) -> None:
        field = np.broadcast_to(np.float32(shift_mm), (*grid.shape, 3))
        write_displacement((folder or self.predictions) / f"{name}_warp.nii.gz", field, grid)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    result = Workspace(tmp_path / "references", tmp_path / "predictions")
    result.references.mkdir()
    result.predictions.mkdir()
    return result


@pytest.fixture
def grid() -> Geometry:
    return GRID


@pytest.fixture
def draw_box() -> Callable[..., np.ndarray]:
    return box


@pytest.fixture
def oblique() -> Geometry:
    """A grid with other axes, spacing and an angle to the world, that covers the default one."""
    angle = np.deg2rad(20.0)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    axes = rotation @ np.array([[0.0, -1, 0], [0, 0, 1], [-1, 0, 0]])  # an (I, L, A) grid, turned
    affine = np.eye(4)
    affine[:3, :3] = axes * [0.9, 1.3, 0.7]
    shape = (26, 26, 40)
    center = np.array([7.5, 6.5, 5.5])
    affine[:3, 3] = center - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Geometry.from_affine(affine, shape)


def scores_of_pair(pair: str, method: str, dice: float | None, hd95_mm: float | None = 1.0, **others) -> PairScores:
    """Scores of one pair with one label, `liver`, and images of its own; `others` replaces fields."""
    fields = {
        "moving_image": f"moving {pair}",
        "fixed_image": f"fixed {pair}",
        "labels": (LabelScore(3, "liver", dice, hd95_mm, None if hd95_mm is not None else "gone"),),
        "dice": dice,
        "hd95_mm": hd95_mm,
        "landmarks": None,
        "folding_percent": 0.25,
        "log_jacobian_std": 0.1,
        "learn2reg_log_jacobian_std": None,
        "deformation_mm": 1.5,
    }
    return PairScores(pair, method, **fields | others)


@pytest.fixture(scope="session")
def pair_scores() -> Callable[..., PairScores]:
    return scores_of_pair
