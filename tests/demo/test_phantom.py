import dataclasses

import numpy as np
import pytest
from scipy.ndimage import minimum_filter

from biasreg.core.errors import InputError
from biasreg.core.geometry import apply_affine, orientation_code
from biasreg.demo.anatomy import LABELS
from biasreg.demo.phantom import (
    PhantomSettings,
    ScannerSettings,
    case_landmarks,
    make_case,
    true_displacement,
    voxel_centers,
)

FOREGROUND = [value for value in LABELS.values() if value]
SETTINGS = PhantomSettings()


def labels_at(case, points):
    """Look up the nearest voxel; 0 outside the grid."""
    indices = np.rint(apply_affine(np.linalg.inv(case.geometry.affine), points)).astype(int)
    inside = ((indices >= 0) & (indices < case.geometry.shape)).all(axis=1)
    values = np.zeros(len(points), dtype=np.uint8)
    values[inside] = case.labels[tuple(indices[inside].T)]
    return values


def mean_dice(first, second):
    both = [((first == k) & (second == k)).sum() * 2 / ((first == k).sum() + (second == k).sum()) for k in FOREGROUND]
    return float(np.mean(both))


@pytest.fixture(scope="module")
def cases():
    return [make_case(SETTINGS, np.random.default_rng([0, index])) for index in range(6)]


def pairs(cases):
    return [(moving, fixed) for moving in cases for fixed in cases if moving is not fixed]


def test_a_case_is_the_same_for_the_same_seed_and_another_for_another():
    settings = dataclasses.replace(SETTINGS, scanner=ScannerSettings(spacing_mm=(6.0, 7.0)))
    first, again, other = (make_case(settings, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert first.geometry == again.geometry
    assert first.geometry != other.geometry


def test_each_case_holds_all_labels_away_from_its_grids_faces(cases):
    for case in cases:
        assert np.unique(case.labels).tolist() == [0, *FOREGROUND]
        assert np.count_nonzero(case.labels[1:-1, 1:-1, 1:-1]) == np.count_nonzero(case.labels)


def test_images_are_finite_float32_magnitudes(cases):
    for case in cases:
        assert case.image.dtype == np.float32
        assert case.labels.dtype == np.uint8
        assert case.image.shape == case.labels.shape == case.geometry.shape
        assert np.isfinite(case.image).all()
        assert case.image.min() >= 0


def test_grids_differ_in_orientation_shape_and_spacing(cases):
    assert len({orientation_code(case.geometry) for case in cases}) >= 3
    assert len({case.geometry.shape for case in cases}) == len(cases)
    assert len({case.geometry.spacing for case in cases}) == len(cases)
    assert any(np.ptp(case.geometry.spacing) > 0 for case in cases)
    assert all(40 <= side <= 72 for case in cases for side in case.geometry.shape)


def test_some_grids_are_oblique_and_all_keep_right_angles():
    settings = dataclasses.replace(
        SETTINGS, scanner=ScannerSettings(spacing_mm=(9.0, 9.0), oblique_fraction=1.0, orientations=("LPS",))
    )
    direction = np.array(make_case(settings, np.random.default_rng(0)).geometry.direction)
    assert np.abs(direction - np.diag([-1, -1, 1])).max() > 0.01
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("code", ["RAS", "LPS", "LAS", "PSR", "ASL"])
def test_a_grid_has_the_orientation_that_was_asked_for(code):
    settings = dataclasses.replace(SETTINGS, scanner=ScannerSettings(spacing_mm=(9.0, 9.0), orientations=(code,)))
    assert orientation_code(make_case(settings, np.random.default_rng(0)).geometry) == code


@pytest.mark.parametrize("code", ["RLS", "RA", "XYZ"])
def test_an_unknown_orientation_is_refused(code):
    settings = dataclasses.replace(SETTINGS, scanner=ScannerSettings(orientations=(code,)))
    with pytest.raises(InputError, match=f"orientation '{code}' does not name"):
        make_case(settings, np.random.default_rng(0))


def test_the_true_displacement_maps_landmarks_onto_each_other(cases):
    for moving, fixed in pairs(cases):
        start = case_landmarks(fixed)
        end = case_landmarks(moving)
        assert start.names == end.names
        moved = start.coordinates + true_displacement(moving, fixed, start.coordinates)
        np.testing.assert_allclose(moved, end.coordinates, atol=1e-3)


def test_the_true_displacement_of_a_case_to_itself_is_zero(cases):
    points = voxel_centers(cases[0].geometry)[::97]
    np.testing.assert_allclose(true_displacement(cases[0], cases[0], points), 0, atol=1e-4)


def test_landmarks_lie_in_the_voxels_of_their_organ(cases):
    for case in cases:
        points = case_landmarks(case)
        organs = [LABELS[name.rsplit("_center")[0].rsplit("_end_")[0]] for name in points.names]
        assert labels_at(case, points.coordinates).tolist() == organs


def test_labels_agree_at_truly_corresponding_points_inside_organs(cases):
    for moving, fixed in pairs(cases)[::4]:
        # Voxels whose neighbours have the same label: away from edges, where voxels round.
        inner = minimum_filter(fixed.labels, 3) == fixed.labels
        chosen = (inner & (fixed.labels > 0)).ravel()
        points = voxel_centers(fixed.geometry)[chosen]
        found = labels_at(moving, points + true_displacement(moving, fixed, points))
        assert (found == fixed.labels.ravel()[chosen]).mean() >= 0.97


def test_identity_leaves_room_and_the_truth_fills_it(cases):
    identity, truth = [], []
    for moving, fixed in pairs(cases)[::4]:
        points = voxel_centers(fixed.geometry)
        labels = fixed.labels.ravel()
        identity.append(mean_dice(labels_at(moving, points), labels))
        truth.append(mean_dice(labels_at(moving, points + true_displacement(moving, fixed, points)), labels))
    assert 0.3 < np.mean(identity) < 0.7
    assert np.mean(truth) > 0.9
