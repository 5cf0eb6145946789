import numpy as np
import pytest
import torch
from scipy import ndimage

from biasreg.core.geometry import Geometry
from biasreg.core.image_io import Image
from biasreg.spatial.native import displacement_to_voxels, moving_coordinates, warp_image, warp_label_map
from biasreg.spatial.warp import sample_labels


def random_labels(shape, seed: int = 0) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return (np.digitize(noise, [-0.05, 0.0, 0.05]) * 20).astype(np.uint16)


def test_identity_on_one_grid_returns_the_label_map(grid: Geometry) -> None:
    labels = random_labels(grid.shape)
    np.testing.assert_array_equal(warp_label_map(Image(labels, grid), None, grid), labels)


def test_warping_is_sample_labels_at_every_voxel(grid: Geometry, oblique: Geometry) -> None:
    labels = random_labels(oblique.shape)
    noise = np.random.default_rng(1).normal(size=(*grid.shape, 3))
    field = (ndimage.gaussian_filter(noise, (3, 3, 3, 0)) * 60).astype(np.float32)
    coordinates = torch.from_numpy(moving_coordinates(field, grid, oblique))[None]
    expected = sample_labels(torch.from_numpy(labels.astype(np.int32))[None, None], coordinates, [20, 40, 60])
    warped = warp_label_map(Image(labels, oblique), field, grid)
    assert warped.dtype == labels.dtype
    assert len(np.unique(warped)) == 4
    np.testing.assert_array_equal(warped, expected[0, 0].numpy())


def test_a_grid_with_flipped_and_permuted_axes_shows_the_same_anatomy(grid: Geometry) -> None:
    labels = random_labels(grid.shape)
    stored = np.transpose(labels, (2, 0, 1))[::-1, :, ::-1]  # axes (I, R, P)
    affine = grid.affine @ np.array([[0.0, 1, 0, 0], [0, 0, -1, 13], [-1, 0, 0, 11], [0, 0, 0, 1]])
    moving = Image(np.ascontiguousarray(stored), Geometry.from_affine(affine, stored.shape))
    np.testing.assert_array_equal(warp_label_map(moving, None, grid), labels)


def test_the_displacement_points_from_the_fixed_to_the_moving_world(grid: Geometry, draw_box) -> None:
    moving = draw_box(grid, (6.5, 2.5, 2.5), (10.5, 7.5, 7.5)).astype(np.uint8)
    field = np.broadcast_to(np.float32([3, 0, 0]), (*grid.shape, 3))
    expected = draw_box(grid, (3.5, 2.5, 2.5), (7.5, 7.5, 7.5))
    np.testing.assert_array_equal(warp_label_map(Image(moving, grid), field, grid), expected)


def test_outside_the_moving_grid_is_background(grid: Geometry) -> None:
    everywhere = Image(np.full(grid.shape, 3, dtype=np.uint8), grid)
    field = np.broadcast_to(np.float32([5, 0, 0]), (*grid.shape, 3))
    warped = warp_label_map(everywhere, field, grid)
    assert (warped[:11] == 3).all()
    assert (warped[11:] == 0).all()


def test_an_empty_label_map_stays_empty(grid: Geometry, oblique: Geometry) -> None:
    assert not warp_label_map(Image(np.zeros(oblique.shape, dtype=np.uint8), oblique), None, grid).any()


@pytest.mark.parametrize(
    ("kind", "factor"), [(np.int64, 2**28), (np.uint32, 2**26), (np.uint64, 1), (np.uint64, 2**56), (np.uint64, 2**58)]
)
def test_large_label_values_survive_in_any_type(grid: Geometry, kind: type, factor: int) -> None:
    small = random_labels(grid.shape)
    field = np.full((*grid.shape, 3), 0.4, dtype=np.float32)
    warped = warp_label_map(Image(small.astype(kind) * kind(factor), grid), field, grid)
    assert warped.dtype == kind
    np.testing.assert_array_equal(warped // kind(factor), warp_label_map(Image(small, grid), field, grid))


def test_an_image_is_found_at_p_plus_d_and_padded_with_its_minimum(grid: Geometry) -> None:
    image = Image(np.random.default_rng(0).normal(size=grid.shape).astype(np.float32), grid)
    shift = np.broadcast_to(np.float32([2.0, 0.0, -1.0]), (*grid.shape, 3))
    warped = warp_image(image, shift, grid)
    np.testing.assert_allclose(warped[:-2, :, 1:], image.array[2:, :, :-1], atol=1e-5)
    assert (warped[-2:] == image.array.min()).all()
    assert (warp_image(image, shift, grid, padding=7.0)[-2:] == 7.0).all()


def test_voxels_of_a_displacement_follow_the_grids_own_axes(oblique: Geometry) -> None:
    along_second_axis = oblique.affine[:3, 1]
    field = np.broadcast_to(along_second_axis, (*oblique.shape, 3))
    voxels = displacement_to_voxels(field, oblique)[0].numpy()
    np.testing.assert_allclose(voxels.reshape(3, -1).T, np.tile([0, 1, 0], (voxels[0].size, 1)), atol=1e-6)
