"""Fields that several test files need."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor


@pytest.fixture
def smooth_field() -> Callable[..., Tensor]:
    """Return a maker of smooth random displacements whose largest component is `amplitude` voxels."""

    def make(shape: tuple[int, int, int], *, amplitude: float, sigma: float = 3.0, seed: int = 0) -> Tensor:
        noise = np.random.default_rng(seed).normal(size=(3, *shape))
        smooth = np.stack([gaussian_filter(component, sigma, mode="nearest") for component in noise])
        return torch.from_numpy(smooth / np.abs(smooth).max() * amplitude).float()[None]

    return make
