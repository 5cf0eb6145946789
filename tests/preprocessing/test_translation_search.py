import numpy as np
import pytest
from scipy import ndimage

from biasreg.preprocessing.translation_search import best_shift


@pytest.fixture
def scene():
    """A structured volume to cut fields of view from."""
    return ndimage.gaussian_filter(np.random.default_rng(0).random((40, 36, 32)), 1.5)


def window(scene, start, size):
    return scene[tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))]


def everywhere(array):
    return np.ones(array.shape, bool)


@pytest.mark.parametrize("start", [(0, 0, 0), (9, 3, 5), (14, 12, 2)])
def test_the_shift_between_two_windows_is_found_exactly(scene, start):
    fixed = window(scene, (8, 6, 4), (20, 18, 16))
    moving = window(scene, start, (24, 20, 22))
    # fixed(x) = scene(x + 8, …) = moving(x + (8, …) - start)
    expected = np.array([8, 6, 4]) - start
    np.testing.assert_array_equal(best_shift(fixed, everywhere(fixed), moving, everywhere(moving), 0.3), expected)


def test_it_is_the_best_of_all_by_brute_force():
    rng = np.random.default_rng(1)
    fixed, moving = rng.random((5, 4, 6)), rng.random((6, 5, 4))
    fixed_mask, moving_mask = rng.random(fixed.shape) > 0.3, rng.random(moving.shape) > 0.3
    best = (-np.inf, None)
    needed = 0.5 * min(fixed_mask.sum(), moving_mask.sum())
    for shift in np.ndindex(*(a + b - 1 for a, b in zip(fixed.shape, moving.shape, strict=True))):
        offset = np.array(shift) - np.array(fixed.shape) + 1
        places = np.argwhere(fixed_mask)
        there = places + offset
        inside = np.all((there >= 0) & (there < moving.shape), axis=1)
        places, there = places[inside], there[inside]
        known = moving_mask[tuple(there.T)]
        if known.sum() >= needed:
            values = fixed[tuple(places[known].T)], moving[tuple(there[known].T)]
            best = max(best, (np.corrcoef(*values)[0, 1], tuple(offset)), key=lambda item: item[0])
    assert tuple(best_shift(fixed, fixed_mask, moving, moving_mask, 0.5)) == best[1]


def test_what_lies_outside_a_mask_does_not_matter(scene):
    fixed, moving = window(scene, (8, 6, 4), (20, 18, 16)), window(scene, (4, 6, 4), (24, 20, 22)).copy()
    mask = everywhere(moving)
    mask[:, :, 12:] = False
    moving[~mask] = 100.0  # a cut field of view, filled with something bright
    np.testing.assert_array_equal(best_shift(fixed, everywhere(fixed), moving, mask, 0.3), [4, 0, 0])


def test_images_without_contrast_have_no_best_shift(scene):
    fixed = window(scene, (0, 0, 0), (8, 8, 8))
    flat = np.full((8, 8, 8), 0.5)
    assert best_shift(fixed, everywhere(fixed), flat, everywhere(flat), 0.5) is None
    assert best_shift(fixed, everywhere(fixed), fixed, np.zeros(fixed.shape, bool), 0.5) is None
