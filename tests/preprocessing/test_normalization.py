import numpy as np
import pytest

from biasreg.planning.plans import ChannelNormalization
from biasreg.preprocessing.normalization import normalize


def test_a_window_is_clipped_and_scaled():
    array = np.array([-2000.0, -1000.0, 0.0, 1000.0, 3000.0]).reshape(5, 1, 1)
    result = normalize(array, np.ones(array.shape, bool), ChannelNormalization("window", -1000, 1000))
    assert result.ravel() == pytest.approx([0, 0, 0.5, 1, 1])
    assert result.dtype == np.float32


def test_percentiles_are_taken_inside_the_foreground_and_follow_the_images_own_scale():
    array = np.random.default_rng(0).random((10, 10, 10)) + 1
    array[:5] = 0
    plan = ChannelNormalization("percentile", 0, 100)
    inside = normalize(array, array > 0, plan)
    assert inside[5:].min() == 0
    assert inside[5:].max() == 1
    np.testing.assert_allclose(normalize(1e6 * array, array > 0, plan), inside, atol=1e-6)


def test_a_constant_image_becomes_zero():
    array = np.full((3, 3, 3), 7.0)
    assert not normalize(array, array > 0, ChannelNormalization("percentile", 0.5, 99.5)).any()
