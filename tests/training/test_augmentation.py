import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from biasreg.losses.objective import PairBatch
from biasreg.planning.plans import AugmentationPlans
from biasreg.training.augmentation import affine_coordinates, augment_pairs, pair_generator, random_affine

CPU = torch.device("cpu")
SPACING = (1.0, 2.0, 4.0)
ALWAYS = AugmentationPlans(20.0, 0.2, 3.0, 0.03, 2.0, 1.0)


def make_pair(shape=(12, 10, 8)):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, *shape, generator=generator)
    labels = torch.randint(0, 4, (1, 1, *shape), generator=generator)
    annotated = torch.tensor([True]), torch.tensor([False])
    masks = torch.ones_like(image), torch.ones_like(image)
    return PairBatch(image, image.clone(), labels, labels.clone(), *annotated, *masks, *masks)


def test_identity_maps_voxels_to_themselves():
    coordinates = affine_coordinates(torch.eye(4, dtype=torch.float64)[None], (3, 4, 5), SPACING, CPU)
    expected = np.stack(np.meshgrid(*(np.arange(size) for size in (3, 4, 5)), indexing="ij"))
    np.testing.assert_allclose(coordinates[0], expected, atol=1e-6)


def test_translation_is_counted_in_mm():
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = torch.tensor([2.0, 2.0, 2.0])
    coordinates = affine_coordinates(matrix[None], (3, 4, 5), SPACING, CPU)
    np.testing.assert_allclose(coordinates[0, :, 0, 0, 0], [2.0, 1.0, 0.5], atol=1e-6)


def test_rotation_keeps_distances_in_mm_and_the_centre():
    matrix = random_affine(30.0, 0.0, 0.0, pair_generator(0, 0))
    shape = (5, 7, 9)
    coordinates = affine_coordinates(matrix[None], shape, SPACING, CPU)[0].double().numpy()
    centre = (np.array(shape) - 1) / 2
    np.testing.assert_allclose(coordinates[:, 2, 3, 4], centre, atol=1e-5)
    before = (np.array([1, 1, 1]) - centre) * SPACING
    after = (coordinates[:, 1, 1, 1] - centre) * SPACING
    assert np.linalg.norm(after) == pytest.approx(np.linalg.norm(before), rel=1e-5)
    assert np.linalg.norm(after - before) > 0.1


def test_random_affine_is_a_rotation_of_bounded_angle_times_a_bounded_scaling():
    for index in range(20):
        matrix = random_affine(10.0, 0.1, 3.0, pair_generator(1, index)).numpy()
        singular = np.linalg.svd(matrix[:3, :3], compute_uv=False)
        assert (singular >= 0.9 - 1e-9).all()
        assert (singular <= 1.1 + 1e-9).all()
        assert np.linalg.det(matrix[:3, :3]) > 0
        assert (abs(matrix[:3, 3]) <= 3.0).all()
        rotation = random_affine(10.0, 0.0, 0.0, pair_generator(1, index)).numpy()[:3, :3]
        assert math.degrees(math.acos(min(1.0, (np.trace(rotation) - 1) / 2))) <= 10 * math.sqrt(3) + 0.5


def test_images_and_labels_move_as_scipy_moves_them():
    batch = make_pair()
    plans = AugmentationPlans(15.0, 0.1, 0.0, 0.0, 0.0, 1.0)
    result = augment_pairs(batch, plans, SPACING, [pair_generator(3, 0)])
    generator = pair_generator(3, 0)
    torch.rand(1, generator=generator)  # the draw of whether to augment
    matrix = random_affine(15.0, 0.1, 0.0, generator)
    at = affine_coordinates(matrix[None], (12, 10, 8), SPACING, CPU)[0].numpy()
    image = ndimage.map_coordinates(batch.moving[0, 0].numpy(), at, order=1, mode="nearest")
    np.testing.assert_allclose(result.moving[0, 0], image, atol=1e-4)
    labels = ndimage.map_coordinates(batch.moving_labels[0, 0].numpy(), at, order=0, mode="nearest")
    assert (result.moving_labels[0, 0].numpy() == labels).mean() > 0.999  # ties may round either way


def test_the_shared_map_moves_both_images_alike_and_the_single_maps_do_not():
    batch = make_pair()
    shared = augment_pairs(batch, AugmentationPlans(15.0, 0.1, 0.0, 0.0, 0.0, 1.0), SPACING, [pair_generator(0, 1)])
    assert torch.equal(shared.moving, shared.fixed)
    assert torch.equal(shared.moving_labels, shared.fixed_labels)
    assert not torch.equal(shared.moving, batch.moving)
    single = augment_pairs(batch, AugmentationPlans(0.0, 0.0, 5.0, 0.05, 2.0, 1.0), SPACING, [pair_generator(0, 1)])
    assert not torch.equal(single.moving, single.fixed)


def test_augmentation_depends_on_seed_and_step_alone():
    batch = make_pair()
    first = augment_pairs(batch, ALWAYS, SPACING, [pair_generator(7, 5)])
    torch.rand(3)
    assert torch.equal(first.moving, augment_pairs(batch, ALWAYS, SPACING, [pair_generator(7, 5)]).moving)
    assert not torch.equal(first.moving, augment_pairs(batch, ALWAYS, SPACING, [pair_generator(7, 6)]).moving)
    assert not torch.equal(first.moving, augment_pairs(batch, ALWAYS, SPACING, [pair_generator(8, 5)]).moving)


def test_nothing_is_resampled_at_probability_zero():
    batch = make_pair()
    never = AugmentationPlans(20.0, 0.2, 3.0, 0.03, 2.0, 0.0)
    assert augment_pairs(batch, never, SPACING, [pair_generator(0, 0)]) is batch


def test_labels_stay_integer_and_known_and_annotation_is_kept():
    result = augment_pairs(make_pair(), ALWAYS, SPACING, [pair_generator(2, 2)])
    assert result.moving_labels.dtype == torch.int64
    assert set(result.moving_labels.unique().tolist()) <= {0, 1, 2, 3}
    assert result.moving_annotated.tolist() == [True]
    assert result.fixed_annotated.tolist() == [False]


def test_nothing_is_visible_that_is_interpolated_across_the_end_of_the_image():
    pair = make_pair()
    inside = torch.zeros_like(pair.moving)
    inside[..., 2:10, 2:8, 2:7] = 1
    bright = pair._replace(moving=inside, fixed=inside, moving_visible=inside, fixed_visible=inside)
    for number in range(5):
        moved = augment_pairs(bright, ALWAYS, SPACING, [pair_generator(4, number)])
        for image, visible in ((moved.moving, moved.moving_visible), (moved.fixed, moved.fixed_visible)):
            assert set(visible.unique().tolist()) == {0.0, 1.0}
            assert image[visible > 0].min() > 0.99
            assert visible.sum() > 0.95 * (image > 0.99).sum()
    shifted = augment_pairs(pair, AugmentationPlans(0.0, 0.0, 0.0, 0.0, 6.0, 1.0), SPACING, [pair_generator(0, 0)])
    for visible in (shifted.moving_visible, shifted.fixed_visible):
        assert visible.min() == 0  # beyond the border
        assert visible.max() == 1


def test_a_users_mask_moves_with_its_image():
    pair = make_pair()
    moved = augment_pairs(
        pair._replace(moving_mask=pair.moving, fixed_mask=pair.fixed), ALWAYS, SPACING, [pair_generator(2, 1)]
    )
    for image, mask, visible in (
        (moved.moving, moved.moving_mask, moved.moving_visible),
        (moved.fixed, moved.fixed_mask, moved.fixed_visible),
    ):
        torch.testing.assert_close(mask * visible, image * visible)
