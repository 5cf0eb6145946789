import numpy as np
import pytest
import torch
from scipy import ndimage

from biasreg.core.geometry import Geometry, apply_affine
from biasreg.inference import native
from biasreg.inference.native import affine_displacement, native_displacement

GRID = Geometry.centered((12, 10, 9), (3.0, 4.0, 5.0))
ORIENTATIONS = ("RAS", "LPS", "LAS", "SRP", "oblique")


def rotation(degrees, shift=(0.0, 0.0, 0.0)):
    turn = np.radians(degrees)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    matrix[:3, 3] = shift
    return matrix


def points_of(geometry):
    return apply_affine(geometry.affine, np.moveaxis(np.indices(geometry.shape), 0, -1))


def smooth_field(seed=0):
    noise = np.random.default_rng(seed).normal(size=(3, *GRID.shape))
    return np.stack([ndimage.gaussian_filter(part, 2, mode="nearest") * 20 for part in noise]).astype(np.float32)


def expected_by_definition(field, frames, geometry):
    """q − p point by point: p to canonical voxels, move, and back out through the second frame; by scipy."""
    points = points_of(geometry)
    voxels = apply_affine(np.linalg.inv(frames[0] @ GRID.affine), points)
    limits = np.array(GRID.shape) - 1
    inside = np.moveaxis(np.clip(voxels, 0, limits), -1, 0)
    moved = np.stack([ndimage.map_coordinates(part, inside, order=1) for part in field], axis=-1)
    return apply_affine(frames[1] @ GRID.affine, voxels + moved) - points


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_field_is_what_its_definition_says_point_by_point(make_grid, orientation):
    geometry = make_grid(orientation, (4.0, 5.0, 3.0), (50.0, -20.0, 10.0))
    frames = rotation(20, (48.0, -18.0, 9.0)), rotation(-10, (-5.0, 4.0, 100.0))
    field = smooth_field()
    result = native_displacement(torch.from_numpy(field)[None], GRID, frames, geometry)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected_by_definition(field, frames, geometry), atol=2e-4)


def test_no_field_between_equal_frames_is_the_identity(make_grid):
    frame = rotation(15, (3.0, 2.0, 1.0))
    result = native_displacement(torch.zeros(1, 3, *GRID.shape), GRID, (frame, frame), make_grid("oblique"))
    np.testing.assert_allclose(result, 0, atol=1e-9)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_voxel_along_a_canonical_axis_is_its_spacing_in_world_mm(make_grid, orientation):
    field = torch.tensor([1.0, -2.0, 0.5])[None, :, None, None, None].expand(1, 3, *GRID.shape)
    result = native_displacement(field, GRID, (np.eye(4), np.eye(4)), make_grid(orientation))
    np.testing.assert_allclose(result.reshape(-1, 3), np.tile([3.0, -8.0, 2.5], (result.size // 3, 1)), atol=1e-5)


def test_beyond_the_canonical_grid_the_field_keeps_its_border_value(make_grid):
    field = torch.zeros(1, 3, *GRID.shape)
    field[:, 0, -1] = 2.0
    result = native_displacement(field, GRID, (np.eye(4), np.eye(4)), make_grid(center=(60, 0, 0)))
    np.testing.assert_allclose(result[..., 0], 6.0, atol=1e-5)


@pytest.mark.parametrize("voxels", [1, 700, 10**9])
def test_the_size_of_the_slabs_does_not_matter(make_grid, monkeypatch, voxels):
    geometry = make_grid("SRP", (4.0, 4.0, 4.0))
    frames = rotation(20), rotation(-10)
    field = torch.from_numpy(smooth_field(1))[None]
    whole = native_displacement(field, GRID, frames, geometry)
    monkeypatch.setattr(native, "SLAB_VOXELS", voxels)
    np.testing.assert_array_equal(native_displacement(field, GRID, frames, geometry), whole)


def test_an_affine_map_is_matrix_times_point_minus_point(make_grid):
    geometry = make_grid("oblique", (5.0, 4.0, 6.0), (10.0, 20.0, -30.0))
    matrix = rotation(25, (1.0, 2.0, 3.0))
    matrix[0, 0] *= 1.2
    points = points_of(geometry)
    np.testing.assert_allclose(
        affine_displacement(matrix, geometry), apply_affine(matrix, points) - points, rtol=0, atol=1e-4
    )
