import numpy as np
import pytest

from biasreg.core.geometry import Geometry
from biasreg.preprocessing.shared_information import MaskedImage, shared_information

GRID = Geometry.centered((20, 20, 20), (2.0, 2.0, 2.0))
EVERYWHERE = np.ones(GRID.shape, bool)


def shift(offset):
    matrix = np.eye(4)
    matrix[:3, 3] = offset
    return matrix


def stripes(levels):
    """An image of equally frequent values."""
    values = (np.indices(GRID.shape)[0] % levels + 0.5) / levels
    return MaskedImage(values.astype(np.float32), EVERYWHERE, GRID)


@pytest.mark.parametrize("levels", [2, 4, 5])
def test_an_image_tells_its_own_entropy(levels):
    image = stripes(levels)
    found = shared_information(image, image, np.eye(4))
    assert found.information == pytest.approx(np.log(levels), abs=1e-5)
    assert (found.share, found.voxels) == (1.0, 8000)


def test_another_contrast_tells_the_same_and_noise_or_a_flat_image_little_or_nothing():
    image = stripes(4)
    inverted = image._replace(array=(1 - image.array).astype(np.float32))
    noise = image._replace(array=np.random.default_rng(0).random(GRID.shape).astype(np.float32))
    flat = image._replace(array=np.zeros(GRID.shape, np.float32))
    assert shared_information(image, inverted, np.eye(4)).information == pytest.approx(np.log(4), abs=1e-5)
    assert shared_information(image, noise, np.eye(4)).information < 0.02
    assert shared_information(image, flat, np.eye(4)).information == pytest.approx(0, abs=1e-9)


def test_a_map_that_loses_half_of_the_anatomy_covers_half_as_much():
    image = stripes(4)
    found = shared_information(image, image, shift([0.0, 0.0, 20.0]))
    assert found.share == pytest.approx(0.5)
    assert found.coverage == pytest.approx(0.5 * found.information)
    gone = shared_information(image, image, shift([0.0, 0.0, 90.0]))
    assert (gone.coverage, gone.voxels) == (0.0, 0)


def test_what_lies_outside_a_mask_does_not_matter():
    image, part = stripes(4), EVERYWHERE.copy()
    part[:, 10:] = False
    spoilt = image.array.copy()
    spoilt[:, 10:] = 0.99
    found = shared_information(image._replace(mask=part), image._replace(array=spoilt), np.eye(4))
    assert found.information == pytest.approx(np.log(4), abs=1e-5)
    assert found.voxels == 4000
