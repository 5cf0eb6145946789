import logging

import numpy as np
import pytest

from biasreg.core.dataset import Case
from biasreg.core.geometry import Geometry, apply_affine
from biasreg.core.image_io import Image, write_image
from biasreg.demo.dataset import phantom_case
from biasreg.demo.phantom import PhantomSettings, ScannerSettings
from biasreg.preprocessing.prealign import (
    foreground_center,
    intensity_score,
    label_score,
    measure_alignment,
    reference_image,
    register_affine,
    translation,
)

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


def test_the_maps_of_two_cases_to_a_reference_compose_to_that_between_them():
    reference = phantom()
    truths = [translation([8.0, -6.0, 4.0]), translation([-10.0, 3.0, 5.0])]
    cosine, sine = np.cos(np.radians(8)), np.sin(np.radians(8))
    truths[1][1:3, 1:3] = [[cosine, -sine], [sine, cosine]]
    first, second = (register_affine(reference, moved(reference, truth), ("MRI", "MRI")) for truth in truths)
    points = apply_affine(truths[0] @ reference.geometry.affine, np.argwhere(reference.array > 0)[::50])
    composed = apply_affine(second @ np.linalg.inv(first), points)
    direct = register_affine(moved(reference, truths[0]), moved(reference, truths[1]), ("MRI", "MRI"))
    assert np.linalg.norm(composed - apply_affine(direct, points), axis=1).max() < 4.0


def test_a_ct_whose_field_of_view_is_cut_lands_where_the_anatomy_is():
    whole = phantom()
    hounsfield = 1500 * (whole.array / whole.array.max()) - 1000
    fixed = Image(hounsfield.astype(np.float32), whole.geometry)
    part = fixed.array[:, :, fixed.array.shape[2] // 3 :]
    corner = apply_affine(whole.geometry.affine, [0, 0, fixed.array.shape[2] // 3])
    affine = whole.geometry.affine.copy()
    affine[:3, 3] = corner
    cut = Image(part, Geometry.from_affine(affine, part.shape))
    found = register_affine(fixed, cut, ("CT", "CT"))
    points = apply_affine(affine, np.argwhere(part > -500)[::50])
    assert np.linalg.norm(apply_affine(found, points) - points, axis=1).max() < 3.0


def test_the_reference_image_keeps_its_voxels_or_averages_them_and_is_centred_on_its_foreground():
    image = phantom()
    shifted = moved(image, translation([30.0, 20.0, -50.0]))
    reference = reference_image(shifted, "MRI")
    np.testing.assert_array_equal(reference.array, image.array)
    np.testing.assert_allclose(foreground_center(reference, "MRI"), 0, atol=1e-6)
    fine = Image(
        np.random.default_rng(0).random((96, 96, 96)).astype(np.float32), Geometry.centered((96,) * 3, (0.5,) * 3)
    )
    coarser = reference_image(fine, "MRI")
    assert coarser.array.shape == (96, 96, 96)  # a block of two voxels is larger than half a coarse voxel
    huge = Image(np.zeros((200, 200, 200), np.float32), Geometry.centered((200,) * 3, (0.5,) * 3))
    assert reference_image(huge, "MRI").array.shape == (100, 100, 100)
    np.testing.assert_allclose(reference_image(huge, "MRI").geometry.extent_mm, (100.0,) * 3)


def cube(start, value=3):
    geometry = Geometry.centered((20, 20, 20), (2.0, 2.0, 2.0))
    labels = np.zeros(geometry.shape, np.uint8)
    labels[tuple(slice(first, first + 8) for first in start)] = value
    return Image(labels, geometry)


def test_the_score_of_labels_is_their_dice():
    fixed = cube((4, 6, 6))
    assert label_score(fixed, fixed, np.eye(4)) == pytest.approx(1)
    assert label_score(fixed, cube((8, 6, 6)), np.eye(4)) == pytest.approx(0.5, abs=0.03)
    assert label_score(fixed, cube((8, 6, 6)), translation([8.0, 0, 0])) == pytest.approx(1)
    assert label_score(fixed, cube((12, 6, 6)), np.eye(4)) == 0
    assert label_score(fixed, cube((4, 6, 6), value=5), np.eye(4)) == 0


def test_the_score_of_intensities_is_high_where_one_tells_the_other_even_across_contrasts():
    rng = np.random.default_rng(0)
    geometry = Geometry.centered((24, 24, 24), (2.0, 2.0, 2.0))
    first = Image(rng.random(geometry.shape).astype(np.float32), geometry)
    second = Image(rng.random(geometry.shape).astype(np.float32), geometry)
    inverted = Image(np.exp(-first.array), geometry)
    assert intensity_score(first, first, np.eye(4)) > 0.9
    assert intensity_score(first, inverted, np.eye(4)) > 0.9
    assert intensity_score(first, second, np.eye(4)) < 0.25
    assert intensity_score(first, Image(np.ones(geometry.shape, np.float32), geometry), np.eye(4)) == 0


@pytest.mark.parametrize("labelled", [True, False])
def test_the_three_ways_of_alignment_are_scored_in_their_order(labelled, tmp_path):
    case = phantom_case("demo_001", settings=SETTINGS, seed=0)
    truth = translation([20.0, -15.0, 10.0])
    truth[:2, :2] = [[0.96, -0.28], [0.28, 0.96]]
    cases = []
    for name, matrix in (("a", np.eye(4)), ("b", truth)):
        geometry = Geometry.from_affine(matrix @ case.geometry.affine, case.image.shape)
        write_image(tmp_path / f"{name}.nii.gz", case.image, geometry)
        write_image(tmp_path / f"{name}_labels.nii.gz", case.labels, geometry)
        labels = tmp_path / f"{name}_labels.nii.gz" if labelled else None
        cases.append(Case(name, name, "MRI", (tmp_path / f"{name}.nii.gz",), labels, None, None))
    scores = measure_alignment(*cases)
    assert (scores.case, scores.reference) == ("b", "a")
    assert scores.none < scores.center < scores.affine
    assert scores.affine > 0.8
