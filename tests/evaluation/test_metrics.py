from unittest.mock import Mock

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from biasreg.core.geometry import Geometry, apply_affine
from biasreg.core.points_io import Points
from biasreg.evaluation.evaluate import IDENTITY_FIELD
from biasreg.evaluation.metrics import (
    deformation_mm,
    dice_per_label,
    displacement_to_voxels,
    field_metrics,
    hd95_per_label,
    target_registration_error,
)
from biasreg.spatial.jacobian import jacobian_determinant


def cube(start: int, side: int = 6, value: int = 1) -> np.ndarray:
    labels = np.zeros((16, 14, 12), dtype=np.uint8)
    labels[start : start + side, 3 : 3 + side, 2 : 2 + side] = value
    return labels


def brute_force_hd95(a: np.ndarray, b: np.ndarray, spacing) -> float:
    """By definition: surfaces by erosion of the whole volume, all distances, numpy's percentile."""
    surfaces = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) * np.array(spacing) for mask in (a, b)]
    distances = cdist(*surfaces)
    return max(np.percentile(distances.min(axis=1), 95), np.percentile(distances.min(axis=0), 95))


def world_points(geometry: Geometry) -> np.ndarray:
    return apply_affine(geometry.affine, np.moveaxis(np.indices(geometry.shape), 0, -1))


def affine_displacement(geometry: Geometry, matrix) -> np.ndarray:
    return (world_points(geometry) @ (np.array(matrix) - np.eye(3)).T).astype(np.float32)


def voxel_array(displacement: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Displacement in voxels as (X, Y, Z, 3)."""
    return np.moveaxis(displacement_to_voxels(displacement, geometry)[0].numpy(), 0, -1)


def test_dice_of_a_cube_shifted_by_a_third_is_two_thirds() -> None:
    assert dice_per_label(cube(3), cube(5), [1]) == {1: pytest.approx(2 / 3)}


def test_dice_counts_each_label_by_itself() -> None:
    a, b = cube(0, value=4), cube(0, value=4)
    a[10:14], b[12:16] = 7, 7
    assert dice_per_label(a, b, [4, 7]) == {4: 1.0, 7: 0.5}


def test_dice_is_zero_where_a_label_is_in_one_map_and_none_where_it_is_in_neither() -> None:
    assert dice_per_label(cube(3), np.zeros_like(cube(3)), [1, 2]) == {1: 0.0, 2: None}


def test_dice_refuses_maps_of_different_shape() -> None:
    with pytest.raises(ValueError, match=r"differ in shape: \(16, 14, 12\) and \(15, 14, 12\)"):
        dice_per_label(cube(3), cube(3)[1:], [1])


def test_hd95_of_two_voxels_is_their_distance_in_mm() -> None:
    a, b = np.zeros((2, 9, 9, 9), dtype=np.int32)
    a[1, 2, 3], b[1, 6, 3] = 5, 5
    assert hd95_per_label(a, b, (1.0, 2.5, 4.0), [5]) == {5: pytest.approx(10.0)}


def test_hd95_of_equal_maps_is_zero() -> None:
    assert hd95_per_label(cube(3), cube(3), (1, 1, 1), [1]) == {1: 0.0}


def test_hd95_is_none_where_a_label_is_missing_from_a_map() -> None:
    empty = np.zeros_like(cube(3))
    assert hd95_per_label(cube(3), empty, (1, 1, 1), [1, 2]) == {1: None, 2: None}
    assert hd95_per_label(empty, cube(3), (1, 1, 1), [1]) == {1: None}


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 3.0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_hd95_agrees_with_brute_force_also_where_labels_touch_the_border(seed: int, spacing) -> None:
    noise = np.random.default_rng(seed).normal(size=(2, 20, 18, 16))
    a, b = (np.digitize(ndimage.gaussian_filter(volume, 3), [-0.01, 0.02]) for volume in noise)
    distances = hd95_per_label(a, b, spacing, [1, 2])
    for value in (1, 2):
        assert distances[value] == pytest.approx(brute_force_hd95(a == value, b == value, spacing), abs=1e-4)


def test_hd95_sees_a_face_at_the_border_of_the_grid_but_none_where_the_label_goes_on() -> None:
    whole, half = np.ones((2, 8, 8, 8), dtype=np.uint8)
    half[4:] = 0
    assert hd95_per_label(whole, half, (1, 1, 1), [1])[1] == pytest.approx(brute_force_hd95(whole > 0, half > 0, (1,)))


def test_hd95_refuses_the_background() -> None:
    with pytest.raises(ValueError, match="must be positive, got 0"):
        hd95_per_label(cube(3), cube(3), (1, 1, 1), [0, 1])


def test_landmark_error_is_matched_by_name_and_falls_to_zero_under_the_true_shift(grid: Geometry) -> None:
    fixed = Points(("a", "b", "c"), np.array([[3.0, 4, 5], [7, 2.5, 6], [1, 1, 1]]))
    shift = np.array([3.0, 0, -4.0])
    moving = Points(("b", "x", "a"), fixed.coordinates[[1, 2, 0]] + shift)
    identity = target_registration_error(fixed, moving, None, grid)
    assert identity.names == ("a", "b")
    assert identity.unmatched == ("c", "x")
    np.testing.assert_allclose(identity.errors_mm, 5.0)
    field = np.broadcast_to(np.float32(shift), (*grid.shape, 3))
    np.testing.assert_allclose(target_registration_error(fixed, moving, field, grid).errors_mm, 0.0, atol=1e-5)


def test_landmark_error_under_a_linear_field_is_exact_between_voxels_of_an_oblique_grid(oblique: Geometry) -> None:
    matrix = np.array([[1.1, 0.05, 0], [0, 0.9, 0.1], [-0.05, 0, 1.0]])
    points = np.random.default_rng(0).uniform(3, 9, size=(8, 3))
    names = tuple("abcdefgh")
    result = target_registration_error(
        Points(names, points), Points(names, points @ matrix.T), affine_displacement(oblique, matrix), oblique
    )
    np.testing.assert_allclose(result.errors_mm, 0.0, atol=1e-4)


def test_landmark_outside_the_grid_takes_the_displacement_at_the_border(grid: Geometry) -> None:
    field = np.zeros((*grid.shape, 3), dtype=np.float32)
    field[-1, ..., 0] = 2.0
    points = Points(("p",), np.array([[30.0, 5, 5]]))
    assert target_registration_error(points, points, field, grid).errors_mm == (pytest.approx(2.0),)


def test_landmarks_without_a_common_name_give_no_error(grid: Geometry) -> None:
    result = target_registration_error(Points(("a",), np.zeros((1, 3))), Points(("b",), np.zeros((1, 3))), None, grid)
    assert result.errors_mm == ()


def test_displacement_to_voxels_leads_to_the_same_point(oblique: Geometry) -> None:
    displacement = np.random.default_rng(0).normal(size=(*oblique.shape, 3)).astype(np.float32)
    indices = np.moveaxis(np.indices(oblique.shape), 0, -1)
    through_voxels = apply_affine(oblique.affine, indices + voxel_array(displacement, oblique))
    np.testing.assert_allclose(through_voxels, world_points(oblique) + displacement, atol=1e-4)


def test_jacobian_of_an_affine_field_is_its_determinant_everywhere_on_an_oblique_grid(oblique: Geometry) -> None:
    matrix = np.array([[1.2, 0.1, 0], [0, 0.9, -0.2], [0.1, 0, 1.1]])
    field = affine_displacement(oblique, matrix)
    determinant = jacobian_determinant(displacement_to_voxels(field, oblique))
    np.testing.assert_allclose(determinant[0], np.linalg.det(matrix), atol=1e-4)
    metrics = field_metrics(field, oblique)
    assert metrics.folding_percent == 0.0
    assert metrics.log_jacobian_std == pytest.approx(0.0, abs=1e-4)
    assert metrics.learn2reg_log_jacobian_std == pytest.approx(0.0, abs=1e-4)


def test_no_displacement_has_the_metrics_that_identity_is_given(grid: Geometry) -> None:
    metrics = field_metrics(np.zeros((*grid.shape, 3), dtype=np.float32), grid)
    assert metrics == pytest.approx(IDENTITY_FIELD, abs=1e-6)


def test_a_mirrored_field_folds_everywhere_and_has_no_log_jacobian(oblique: Geometry) -> None:
    field = affine_displacement(oblique, np.diag([-1.0, 1.0, 1.0]))
    metrics = field_metrics(field, oblique)
    assert metrics.folding_percent == 100.0
    assert metrics.log_jacobian_std is None


def test_folding_is_the_share_of_voxels_that_fold(grid: Geometry) -> None:
    field = np.zeros((*grid.shape, 3), dtype=np.float32)
    field[8, ..., 0] = 4.0  # central difference along x at 7 is +2, at 9 it is −2: only x = 9 folds
    assert field_metrics(field, grid).folding_percent == pytest.approx(100 / 16)


def test_learn2reg_variant_follows_its_published_formula(oblique: Geometry) -> None:
    noise = np.random.default_rng(0).normal(size=(*oblique.shape, 3))
    field = (ndimage.gaussian_filter(noise, (2, 2, 2, 0)) * 20).astype(np.float32)
    voxels = voxel_array(field, oblique)
    jacobian = np.stack(np.gradient(voxels, axis=(0, 1, 2)), axis=-1) + np.eye(3)  # (X, Y, Z, 3, 3)
    determinant = np.linalg.det(jacobian[2:-2, 2:-2, 2:-2])
    expected = np.log((determinant + 3).clip(1e-9, 1e9)).std()
    assert field_metrics(field, oblique).learn2reg_log_jacobian_std == pytest.approx(expected, rel=1e-4)


def test_the_jacobian_which_takes_the_most_memory_is_computed_once(grid: Geometry, monkeypatch) -> None:
    counted = Mock(wraps=jacobian_determinant)
    monkeypatch.setattr("biasreg.spatial.jacobian.jacobian_determinant", counted)
    assert field_metrics(np.zeros((*grid.shape, 3), dtype=np.float32), grid).learn2reg_log_jacobian_std is not None
    counted.assert_called_once()


def test_grids_too_small_for_learn2reg_have_no_such_value() -> None:
    geometry = Geometry.centered((4, 8, 8), (1, 1, 1))
    metrics = field_metrics(np.zeros((4, 8, 8, 3), dtype=np.float32), geometry)
    assert metrics.learn2reg_log_jacobian_std is None
    assert metrics.log_jacobian_std == 0.0


def chequered(shape, length: float) -> np.ndarray:
    """A field along z of ± `length` from voxel to voxel, which no affine field comes near on an even grid."""
    field = np.zeros((*shape, 3), dtype=np.float32)
    field[..., 2] = length * (-1.0) ** np.indices(shape).sum(axis=0)
    return field


def test_pose_and_scale_are_no_deformation(oblique: Geometry) -> None:
    turned = np.array([[0.9, -0.3, 0.0], [0.3, 1.2, 0.1], [0.0, 0.2, 0.7]])
    field = affine_displacement(oblique, turned)
    inside = np.random.default_rng(0).random(oblique.shape) > 0.7
    assert np.linalg.norm(field, axis=-1).mean() > 1
    assert deformation_mm(field) == pytest.approx(0.0, abs=1e-5)
    assert deformation_mm(field, inside) == pytest.approx(0.0, abs=1e-5)


def test_deformation_beyond_an_affine_field_is_its_mean_length(grid: Geometry) -> None:
    field = affine_displacement(grid, np.diag([1.1, 0.9, 1.0])) + chequered(grid.shape, 2.5)
    assert deformation_mm(field) == pytest.approx(2.5, abs=1e-5)


def test_deformation_counts_only_inside_the_mask(grid: Geometry) -> None:
    inside = np.zeros(grid.shape, dtype=bool)
    inside[2:8, 4:8, 2:6] = True
    field = np.where(
        inside[..., None], chequered(grid.shape, 1.5), 40 * np.random.default_rng(0).random((*grid.shape, 3))
    )
    assert deformation_mm(field, inside) == pytest.approx(1.5, abs=1e-5)
    assert deformation_mm(field) > 5
    assert deformation_mm(field, np.zeros_like(inside)) == deformation_mm(field)


def test_deformation_does_not_depend_on_how_the_grid_lies(grid: Geometry) -> None:
    rng = np.random.default_rng(1)
    field = ndimage.gaussian_filter(rng.normal(size=(*grid.shape, 3)), (2, 2, 2, 0)) * 30
    inside = rng.random(grid.shape) > 0.5
    expected = deformation_mm(field, inside)
    turned = (array.transpose(2, 0, 1, *range(3, array.ndim))[::-1, :, ::-1] for array in (field, inside))
    assert deformation_mm(*turned) == pytest.approx(expected)


def test_a_line_of_voxels_and_a_single_one_have_a_deformation(grid: Geometry) -> None:
    inside = np.zeros(grid.shape, dtype=bool)
    inside[4:8, 3, 3] = True
    assert deformation_mm(chequered(grid.shape, 1.0), inside) == pytest.approx(0.8)  # 0.4, 1.2, 1.2, 0.4 past a line
    inside[5:] = False
    assert deformation_mm(chequered(grid.shape, 1.0), inside) == pytest.approx(0.0, abs=1e-6)


def test_deformation_of_many_voxels_is_taken_from_some_of_them() -> None:
    coordinates = np.indices((80, 80, 80), dtype=np.float32)
    field = np.stack([np.sin(axis / 7) for axis in coordinates], axis=-1)
    everywhere = np.column_stack([coordinates.reshape(3, -1).T, np.ones(80**3)])
    flat = field.reshape(-1, 3)
    rest = flat - everywhere @ np.linalg.lstsq(everywhere, flat, rcond=None)[0]
    assert deformation_mm(field) == pytest.approx(np.linalg.norm(rest, axis=1).mean(), rel=0.01)
