import numpy as np
import pytest
import SimpleITK

from biasreg.core.geometry import Geometry, apply_affine
from biasreg.preprocessing.affine_registration import (
    CoarseImage,
    is_plausible,
    refine_coarse,
    register_affine_coarse,
    register_rigid_coarse,
)

SPACING = 5.0


def anatomy(points):
    """A long body with landmarks all along it, at points of its world, and where it is."""
    body = np.linalg.norm(points[..., :2] / [45.0, 35.0], axis=-1) < 1
    rng = np.random.default_rng(4)
    values = 0.3 * body
    for place in rng.uniform([-30, -22, -120], [30, 22, 120], (40, 3)):
        distance = np.linalg.norm((points - place) / rng.uniform(6, 14, 3), axis=-1)
        values += rng.uniform(-0.3, 0.6) * np.exp(-(distance**2)) * body
    return np.clip(values, 0, 1).astype(np.float32), body


def view(shape, center, matrix=None):
    """Look at the anatomy, moved by `matrix`, through a grid around `center`."""
    grid = Geometry.centered(shape, (SPACING,) * 3)
    points = apply_affine(grid.affine, np.moveaxis(np.indices(shape), 0, -1)) + center
    values, body = anatomy(points if matrix is None else apply_affine(np.linalg.inv(matrix), points))
    return CoarseImage(values, np.ones(shape, bool), body, grid)


def corner_error(found, truth, image):
    points = apply_affine(image.grid.affine, np.argwhere(image.anatomy))
    return np.linalg.norm(apply_affine(found, points) - apply_affine(truth, points), axis=1).max()


def register(fixed, moving):
    """Rigidly, then by an affine map."""
    return register_affine_coarse(fixed, moving, register_rigid_coarse(fixed, moving))


def shift(offset):
    matrix = np.eye(4)
    matrix[:3, 3] = offset
    return matrix


@pytest.fixture
def turned():
    """A map between two people: turned, larger, and shifted."""
    angle = np.radians(10)
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag([1.1, 0.95, 1.05]) @ [
        [1, 0, 0],
        [0, np.cos(angle), -np.sin(angle)],
        [0, np.sin(angle), np.cos(angle)],
    ]
    matrix[:3, 3] = [6.0, -8.0, 10.0]
    return matrix


def test_an_affine_map_is_found_to_less_than_a_voxel_everywhere(turned):
    fixed, moving = view((24, 20, 28), (0, 0, 0)), view((28, 24, 34), (0, 0, 0), turned)
    assert corner_error(register(fixed, moving), turned, fixed) < SPACING


def test_fields_of_view_that_overlap_in_part_are_laid_where_they_overlap():
    fixed, moving = view((24, 20, 40), (0, 0, 40)), view((24, 20, 40), (0, 0, -40))
    # Grid coordinates differ by the centres: x_fixed + 40 = x_moving - 40 along z.
    truth = shift([0.0, 0.0, 80.0])
    assert corner_error(register(fixed, moving), truth, fixed) < SPACING


def test_another_contrast_does_not_matter(turned):
    fixed, moving = view((24, 20, 28), (0, 0, 0)), view((28, 24, 34), (0, 0, 0), turned)
    inverted = moving._replace(array=np.where(moving.anatomy, 1 - moving.array, 0).astype(np.float32))
    assert corner_error(register(fixed, inverted), turned, fixed) < SPACING


def test_the_same_images_give_the_same_matrix_with_any_number_of_threads(turned):
    fixed, moving = view((20, 18, 20), (0, 0, 0)), view((20, 18, 20), (0, 0, 0), turned)
    threads = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    results = []
    for number in (1, 4):
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(number)
        results.append(register(fixed, moving))
        assert SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads() == number
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    np.testing.assert_array_equal(*results)


def test_noise_and_flat_images_give_nothing_implausible():
    grid = Geometry.centered((12, 12, 12), (SPACING,) * 3)
    everywhere = np.ones(grid.shape, bool)
    noise = [np.random.default_rng(seed).random(grid.shape).astype(np.float32) for seed in (0, 1)]
    flat = CoarseImage(np.zeros(grid.shape, np.float32), everywhere, everywhere, grid)
    first, second = (CoarseImage(array, everywhere, everywhere, grid) for array in noise)
    assert register_rigid_coarse(first, flat) is None
    found = register_rigid_coarse(first, second)
    if found is not None:
        assert np.linalg.norm(found[:3, 3]) < 12 * SPACING
    assert is_plausible(register_affine_coarse(first, second, np.eye(4) if found is None else found))
    np.testing.assert_array_equal(register_affine_coarse(first, flat, np.eye(4)), np.eye(4))


def test_the_best_of_several_starts_is_refined(turned):
    fixed, moving = view((24, 20, 28), (0, 0, 0)), view((28, 24, 34), (0, 0, 0), turned)
    starts = [shift([0.0, 0.0, offset]) for offset in (-60.0, 60.0, 5.0)]
    assert corner_error(refine_coarse(fixed, moving, starts), turned, fixed) < SPACING


def test_a_rigid_map_keeps_lengths(turned):
    fixed, moving = view((24, 20, 28), (0, 0, 0)), view((28, 24, 34), (0, 0, 0), turned)
    found = register_rigid_coarse(fixed, moving)
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-6)
    assert np.linalg.det(found[:3, :3]) > 0


@pytest.mark.parametrize(
    "matrix",
    [
        np.diag([-1.0, 1, 1, 1]),  # mirrored
        np.diag([1.7, 0.8, 0.8, 1]),
        np.diag([0.55, 1.2, 1.2, 1]),
        np.diag([1.5, 1.5, 1.5, 1]),
        np.diag([-1.0, -1, 1, 1]),  # turned by 180 degrees
    ],
)
def test_what_anatomy_does_not_do_is_implausible(matrix):
    assert not is_plausible(matrix)
    assert is_plausible(np.diag([1.3, 0.9, 0.8, 1]))
