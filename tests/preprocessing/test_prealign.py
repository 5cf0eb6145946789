import logging

import numpy as np

from biasreg.core.geometry import Geometry, apply_affine
from biasreg.core.image_io import Image
from biasreg.demo.dataset import phantom_case
from biasreg.demo.phantom import PhantomSettings, ScannerSettings
from biasreg.preprocessing.prealign import foreground_center, register_affine, translation

SETTINGS = PhantomSettings(scanner=ScannerSettings(spacing_mm=(4.6, 5.4)))


def phantom():
    case = phantom_case("demo_001", settings=SETTINGS, seed=0)
    return Image(case.image, case.geometry)


def moved(image, matrix):
    """The same voxels in a world that `matrix` maps the old one to."""
    return Image(image.array, Geometry.from_affine(matrix @ image.geometry.affine, image.array.shape))


def test_a_rotated_and_shifted_copy_is_found_within_two_millimetres():
    fixed = phantom()
    angle = np.radians(12)
    truth = translation([14.0, -9.0, 6.0])
    truth[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    found = register_affine(fixed, moved(fixed, truth), ("MRI", "MRI"))
    points = apply_affine(fixed.geometry.affine, np.argwhere(fixed.array > np.percentile(fixed.array, 70)))
    error = np.linalg.norm(apply_affine(found, points) - apply_affine(truth, points), axis=1)
    assert error.mean() < 2.0


def test_the_same_images_give_the_same_matrix():
    fixed, moving = phantom(), moved(phantom(), translation([5.0, 5.0, 0.0]))
    first, second = (register_affine(fixed, moving, ("MRI", "MRI")) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_where_registration_cannot_help_centres_are_kept_and_it_is_said(caplog):
    noise = np.random.default_rng(0)
    grid = Geometry.centered((16, 16, 16), (3.0, 3.0, 3.0))
    fixed = Image(noise.random(grid.shape).astype(np.float32), grid)
    flat = Image(
        np.full(grid.shape, 3.0, np.float32), Geometry.from_affine(translation([9, 0, 0]) @ grid.affine, grid.shape)
    )
    with caplog.at_level(logging.WARNING):
        found = register_affine(fixed, flat, ("MRI", "MRI"))
    np.testing.assert_allclose(found, translation([9.0, 0.0, 0.0]), atol=1e-9)
    assert "centres are kept" in caplog.text


def test_the_foreground_centre_is_a_point_of_the_world():
    image = phantom()
    shifted = moved(image, translation([10.0, -20.0, 30.0]))
    difference = foreground_center(shifted, "MRI") - foreground_center(image, "MRI")
    np.testing.assert_allclose(difference, [10.0, -20.0, 30.0], atol=1e-6)
