"""Fields that several test files need."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from biasreg.core.geometry import Geometry


@pytest.fixture
def smooth_field() -> Callable[..., Tensor]:
    """Return a maker of smooth random displacements whose largest component is `amplitude` voxels."""

    def make(shape: tuple[int, int, int], *, amplitude: float, sigma: float = 3.0, seed: int = 0) -> Tensor:
        noise = np.random.default_rng(seed).normal(size=(3, *shape))
        smooth = np.stack([gaussian_filter(component, sigma, mode="nearest") for component in noise])
        return torch.from_numpy(smooth / np.abs(smooth).max() * amplitude).float()[None]

    return make


@pytest.fixture
def grid() -> Geometry:
    return Geometry.from_affine(np.eye(4), (16, 14, 12))


@pytest.fixture
def oblique() -> Geometry:
    """A grid turned by 20 degrees about z, anisotropic, with its first axis pointing left."""
    cosine, sine = np.cos(np.radians(20)), np.sin(np.radians(20))
    direction = np.array([[-cosine, -sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = direction * [1.2, 0.9, 2.0]
    affine[:3, 3] = [16.5, 0.5, -1.5]
    return Geometry.from_affine(affine, (16, 18, 9))


def box(geometry: Geometry, low_mm, high_mm) -> np.ndarray:
    """Voxels whose centre lies in a box of the world, so that one box can be drawn on any grid."""
    indices = np.moveaxis(np.indices(geometry.shape), 0, -1)
    points = indices @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]
    return np.all((points > low_mm) & (points < high_mm), axis=-1)


@pytest.fixture
def draw_box() -> Callable[..., np.ndarray]:
    return box
