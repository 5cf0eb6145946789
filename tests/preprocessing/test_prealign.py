import numpy as np

from biasreg.core.geometry import Geometry, apply_affine
from biasreg.core.image_io import Image
from biasreg.demo.dataset import phantom_case
from biasreg.demo.phantom import PhantomSettings, ScannerSettings
from biasreg.preprocessing.prealign import (
    foreground_center,
    joins_centers_only,
    make_reference,
    refine_affine,
    register_affine,
    register_rigid,
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
    found = register_affine(fixed, moved(fixed, truth), "MRI")
    points = apply_affine(fixed.geometry.affine, np.argwhere(fixed.array > np.percentile(fixed.array, 70)))
    error = np.linalg.norm(apply_affine(found, points) - apply_affine(truth, points), axis=1)
    assert error.mean() < 2.0


def test_the_same_images_give_the_same_matrix():
    fixed, moving = phantom(), moved(phantom(), translation([5.0, 5.0, 0.0]))
    first, second = (register_affine(fixed, moving, "MRI") for _ in range(2))
    np.testing.assert_array_equal(first, second)
    rigid = register_rigid(fixed, moving, "MRI")
    np.testing.assert_array_equal(register_affine(fixed, moving, "MRI", rigid), first)
    focus = (fixed.array > np.percentile(fixed.array, 80)).astype(np.float32)
    refined = [refine_affine(fixed, moving, "MRI", focus, rigid) for _ in range(2)]
    np.testing.assert_array_equal(*refined)


def test_a_rigid_map_of_a_rotated_and_shifted_copy_is_found_and_keeps_lengths():
    fixed = phantom()
    angle = np.radians(-9)
    truth = translation([-11.0, 5.0, 8.0])
    truth[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    found = register_rigid(fixed, moved(fixed, truth), "MRI")
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-6)
    points = apply_affine(fixed.geometry.affine, np.argwhere(fixed.array > np.percentile(fixed.array, 70)))
    error = np.linalg.norm(apply_affine(found, points) - apply_affine(truth, points), axis=1)
    assert error.mean() < 2.0


def test_a_focus_is_found_again_from_a_start_that_is_a_vertebra_off():
    fixed = phantom()
    focus = np.zeros(fixed.array.shape, np.float32)
    middle = fixed.array.shape[2] // 2
    focus[:, :, middle:] = fixed.array[:, :, middle:] > np.percentile(fixed.array, 60)
    truth = translation([4.0, -3.0, 5.0])
    height = fixed.geometry.spacing[2] * (fixed.array.shape[2] - middle)
    off = translation([0.0, 0.0, 0.2 * height]) @ truth
    found = refine_affine(fixed, moved(fixed, truth), "MRI", focus, off)
    points = apply_affine(fixed.geometry.affine, np.argwhere(focus > 0))
    assert np.linalg.norm(apply_affine(found, points) - apply_affine(truth, points), axis=1).mean() < 2.0


def test_where_registration_cannot_help_centres_are_kept():
    noise = np.random.default_rng(0)
    grid = Geometry.centered((16, 16, 16), (3.0, 3.0, 3.0))
    fixed = Image(noise.random(grid.shape).astype(np.float32), grid)
    flat = Image(
        np.full(grid.shape, 3.0, np.float32), Geometry.from_affine(translation([9, 0, 0]) @ grid.affine, grid.shape)
    )
    found = register_affine(fixed, flat, "MRI")
    np.testing.assert_allclose(found, translation([9.0, 0.0, 0.0]), atol=1e-9)
    assert joins_centers_only(found)


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
    first, second = (register_affine(reference, moved(reference, truth), "MRI") for truth in truths)
    points = apply_affine(truths[0] @ reference.geometry.affine, np.argwhere(reference.array > 0)[::50])
    composed = apply_affine(second @ np.linalg.inv(first), points)
    direct = register_affine(moved(reference, truths[0]), moved(reference, truths[1]), "MRI")
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
    found = register_affine(fixed, cut, "CT")
    points = apply_affine(affine, np.argwhere(part > -500)[::50])
    assert np.linalg.norm(apply_affine(found, points) - points, axis=1).max() < 3.0


def test_the_reference_image_keeps_its_voxels_or_averages_them_and_is_centred_on_its_foreground():
    image = phantom()
    shifted = moved(image, translation([30.0, 20.0, -50.0]))
    reference = make_reference(shifted, None, "MRI").image
    np.testing.assert_array_equal(reference.array, image.array)
    np.testing.assert_allclose(foreground_center(reference, "MRI"), 0, atol=1e-6)
    elsewhere = make_reference(shifted, None, "MRI", center=(1.0, 2.0, 3.0)).image
    np.testing.assert_allclose(elsewhere.geometry.center, shifted.geometry.center - [1.0, 2.0, 3.0])
    fine = Image(
        np.random.default_rng(0).random((96, 96, 96)).astype(np.float32), Geometry.centered((96,) * 3, (0.5,) * 3)
    )
    coarser = make_reference(fine, None, "MRI").image
    assert coarser.array.shape == (96, 96, 96)  # a block of two voxels is larger than half a coarse voxel
    huge = Image(np.zeros((200, 200, 200), np.float32), Geometry.centered((200,) * 3, (0.5,) * 3))
    part = np.zeros(huge.array.shape, bool)
    part[20:60, 40:80, 100:] = True
    reduced = make_reference(huge, part, "MRI")
    assert reduced.image.array.shape == (100, 100, 100)
    np.testing.assert_allclose(reduced.image.geometry.extent_mm, (100.0,) * 3)
    np.testing.assert_array_equal(reduced.focus, part[::2, ::2, ::2].astype(np.float32))
    thin = np.zeros(huge.array.shape, bool)
    thin[51, 51, 51] = True
    assert make_reference(huge, thin, "MRI").focus.max() == 1 / 8


def test_a_focus_is_aligned_for_itself_where_the_rest_moves_otherwise():
    fixed = phantom()
    neck = fixed.array.shape[2] * 2 // 3
    head = np.zeros(fixed.array.shape, bool)
    head[:, :, neck + 3 :] = fixed.array[:, :, neck + 3 :] > np.percentile(fixed.array, 60)
    moving = Image(fixed.array.copy(), fixed.geometry)
    shift = round(12 / fixed.geometry.spacing[0])  # what is above has turned aside, the rest has not
    moving.array[:, :, neck:] = np.roll(fixed.array[:, :, neck:], shift, axis=0)
    truth = fixed.geometry.affine[:3, 0] * shift
    modality = "MRI"
    start = register_rigid(fixed, moving, modality)
    found = refine_affine(fixed, moving, modality, head.astype(np.float32), start)
    points = apply_affine(fixed.geometry.affine, np.argwhere(head))
    before, after = (
        np.linalg.norm(apply_affine(matrix, points) - (points + truth), axis=1).mean() for matrix in (start, found)
    )
    assert after < 3.0  # voxels are of 5 mm
    assert after < 0.6 * before


def test_a_focus_of_single_voxels_does_not_spoil_a_good_map():
    fixed = phantom()
    thin = np.zeros(fixed.array.shape, bool)
    thin[10::7, 10::7, 8::6] = True
    truth = translation([7.0, -5.0, 3.0])
    moving = moved(fixed, truth)
    found = refine_affine(fixed, moving, "MRI", thin.astype(np.float32), truth)
    points = apply_affine(fixed.geometry.affine, np.argwhere(thin))
    assert np.linalg.norm(apply_affine(found, points) - apply_affine(truth, points), axis=1).max() < 1.0


def test_an_empty_focus_leaves_the_map_as_it_is():
    fixed, start = phantom(), translation([7.0, -5.0, 3.0])
    empty = np.zeros(fixed.array.shape, np.float32)
    np.testing.assert_array_equal(refine_affine(fixed, moved(fixed, start), "MRI", empty, start), start)
