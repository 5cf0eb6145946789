from dataclasses import replace

import pytest
import torch
from scipy import ndimage

from biasreg.inference import refinement
from biasreg.inference.refinement import Level, refine, smooth
from biasreg.spatial.displacement import resize
from biasreg.spatial.jacobian import jacobian_determinant
from biasreg.spatial.warp import warp

SHAPE = (20, 22, 24)


@pytest.fixture
def plans(configuration):
    return configuration.training


def texture(shape=SHAPE, seed=0, sigma=2.0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(1, 1, *shape, generator=generator)
    rough = smooth(noise, sigma)
    return (rough - rough.min()) / (rough.max() - rough.min())


def level(moving, fixed, channels=1):
    inside = torch.ones(1, 1, *fixed.shape[2:])
    return Level(moving, fixed, inside, inside, channels)


def shifted(voxels):
    return torch.tensor(voxels).view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE).clone()


def interior(field):
    return field[:, :, 5:-5, 5:-5, 5:-5]


def test_a_shift_of_the_image_is_found(plans):
    true = shifted([1.5, -1.0, 0.5])
    moving = texture()
    found = refine(torch.zeros_like(true), [level(moving, warp(moving, true))], plans, 80)
    assert interior(found - true).abs().mean() < 0.2  # of 1 voxel on average


def test_it_goes_on_from_the_displacement_that_is_given(plans):
    true, start = shifted([4.0, 0.0, 0.0]), shifted([3.0, 0.5, 0.0])
    moving = texture()
    found = refine(start, [level(moving, warp(moving, true))], plans, 40)
    assert interior(found - true).abs().mean() < 0.5 * interior(start - true).abs().mean()


def test_equal_images_keep_their_displacement(plans):
    image, zero = texture(), torch.zeros(1, 3, *SHAPE)
    found = refine(zero, [level(image, image)], plans, 5)
    assert found.abs().max() < 1e-3


@pytest.mark.parametrize("similarity", ["lncc", "mind"])
@pytest.mark.parametrize(("moving_ends", "fixed_ends"), [(24, 15), (18, 12), (12, 18)])
def test_where_an_image_ends_is_no_structure(plans, similarity, moving_ends, fixed_ends):
    image, masks = texture(), [until(end) for end in (moving_ends, fixed_ends)]
    ends_apart = Level(*(image * mask for mask in masks), *masks, 1)
    found = refine(torch.zeros(1, 3, *SHAPE), [ends_apart], replace(plans, similarity=similarity), 20)
    assert found.abs().max() < 1e-3


@pytest.mark.parametrize("similarity", ["lncc", "mind"])
def test_the_end_of_an_image_does_not_pull_where_images_differ(plans, similarity):
    image, seen = texture(), until(15)
    unlike = 0.85 * image + 0.15 * texture(seed=1)
    ends_early = Level(image * seen, unlike, seen, torch.ones_like(seen), 1)
    found = refine(torch.zeros(1, 3, *SHAPE), [ends_early], replace(plans, similarity=similarity), 30)
    length = found.square().sum(dim=1).sqrt()
    assert length[..., 14].mean() < 1.3 * length[..., :10].mean()


def test_between_voxels_the_end_of_an_image_is_no_structure_either(plans):
    image, seen, start = texture(), until(15), shifted([0.0, 0.0, 0.5])
    ends_early = Level(image * seen, warp(image, start), seen, torch.ones_like(seen), 1)
    torch.testing.assert_close(refine(start, [ends_early], plans, 10), start, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("moving_ends", "fixed_ends"), [(24, 15), (15, 24), (12, 18)])
def test_labels_end_with_the_image(plans, moving_ends, fixed_ends):
    both = torch.cat([texture(), (texture(seed=4) > 0.5).float()], dim=1)
    masks = [until(end) for end in (moving_ends, fixed_ends)]
    for start in (shifted([0.0, 0.0, 0.0]), shifted([0.0, 0.0, 0.5])):
        ends_apart = Level(both * masks[0], warp(both, start) * masks[1], *masks, 1)
        torch.testing.assert_close(refine(start, [ends_apart], plans, 10), start, atol=1e-3, rtol=0)


def until(end):
    """Mask an image that has that many slices."""
    return (torch.arange(SHAPE[2]) < end).float().expand(1, 1, *SHAPE)


def test_what_does_not_get_better_is_kept_as_it_was(plans, monkeypatch):
    monkeypatch.setattr("biasreg.inference.refinement.LARGEST_STEP_VOXELS", -3.0)  # uphill
    start = shifted([0.5, 0.0, 0.0])
    moving = texture()
    found = refine(start, [level(moving, warp(moving, start))], plans, 3)
    torch.testing.assert_close(found, start)


def test_unlike_images_do_not_fold(plans):
    found = refine(torch.zeros(1, 3, *SHAPE), [level(texture(seed=1), texture(seed=2))], plans, 30)
    assert found.abs().max() > 1
    assert jacobian_determinant(found).min() > 0


@pytest.mark.parametrize("strength", [1e-24, 1.0, 1e20])
def test_no_step_is_longer_than_half_a_voxel(plans, monkeypatch, strength):
    moving, fixed, steps = texture(seed=1), texture(seed=2), []
    force, compose = refinement._force, refinement.compose

    def scaled(*arguments):
        loss, found = force(*arguments)
        return loss, found * strength

    def noted(update, residual):
        steps.append(update)
        return compose(update, residual)

    monkeypatch.setattr(refinement, "_force", scaled)
    monkeypatch.setattr(refinement, "compose", noted)
    refine(torch.zeros(1, 3, *SHAPE), [level(moving, fixed)], plans, 3)
    updates = steps[1:-1:2]  # between them the sum of the steps is composed with the start
    assert len(updates) == 3
    assert all(float(update.square().sum(dim=1).sqrt().max()) <= 0.5 + 1e-6 for update in updates)


def test_one_strong_pull_does_not_slow_down_the_others(plans):
    true = shifted([1.5, -1.0, 0.5])
    moving = texture()
    fixed = warp(moving, true)
    fixed[0, 0, 2, 2, 2] = 50.0  # far from the interior
    found = refine(torch.zeros_like(true), [level(moving, fixed)], plans, 80)
    assert interior(found - true).abs().mean() < 0.3


def test_a_level_ends_when_nothing_gets_better(plans, monkeypatch):
    losses, force = [], refinement._force

    def noted(*arguments):
        loss, found = force(*arguments)
        losses.append(loss)
        return loss, found

    monkeypatch.setattr(refinement, "_force", noted)
    refine(torch.zeros(1, 3, *SHAPE), [level(texture(seed=1), texture(seed=2))], plans, 500)
    assert 20 < len(losses) < 300
    assert min(losses[:-5]) - min(losses) <= 0.005 * min(losses)


def test_a_loss_that_is_no_number_ends_refinement_with_what_was_found(plans, monkeypatch, caplog):
    moving, force = texture(), refinement._force
    fixed, results = warp(moving, shifted([1.5, 0.0, 0.0])), []

    def broken(*arguments):
        results.append(force(*arguments))
        return (float("nan"), results[-1][1]) if len(results) > 4 else results[-1]

    monkeypatch.setattr(refinement, "_force", broken)
    found = refine(torch.zeros(1, 3, *SHAPE), [level(moving, fixed)], plans, 30)
    assert len(results) == 5
    assert interior(found)[:, 0].mean() > 0.3
    assert "not a number" in caplog.text


def test_the_result_lies_on_the_finest_grid_and_counts_its_voxels(plans):
    true = shifted([1.0, 0.0, -1.0])
    fine = texture([2 * size for size in SHAPE], sigma=4.0)
    moved = warp(fine, resize(true, fine.shape[2:]))
    coarse = [torch.nn.functional.avg_pool3d(image, 2) for image in (fine, moved)]
    found = refine(torch.zeros(1, 3, *SHAPE), [level(*coarse), level(fine, moved)], plans, 30)
    assert found.shape[2:] == fine.shape[2:]
    torch.testing.assert_close(
        found[:, :, 10:-10, 10:-10, 10:-10].mean(dim=(2, 3, 4))[0], torch.tensor([2.0, 0.0, -2.0]), atol=0.4, rtol=0
    )


def test_where_intensities_are_blank_the_segmentations_count(plans):
    true = shifted([1.5, 0.0, 0.0])
    labels = (texture() > 0.5).float()
    blank = torch.zeros(1, 1, *SHAPE)
    pair = torch.cat([blank, labels], dim=1), torch.cat([blank, warp(labels, true)], dim=1)
    zero = torch.zeros_like(true)
    found = refine(zero, [level(*pair)], plans, 40)
    assert interior(found)[:, 0].mean() > 0.7
    assert refine(zero, [level(blank, blank)], plans, 5).abs().max() == 0


def test_the_weights_of_the_plans_decide_between_intensities_and_segmentations(plans):
    image, labels = texture(seed=3), (texture(seed=4, sigma=1.0) > 0.5).float()
    one_way, other_way = shifted([1.5, 0.0, 0.0]), shifted([-1.5, 0.0, 0.0])
    pair = torch.cat([image, labels], dim=1), torch.cat([warp(image, one_way), warp(labels, other_way)], dim=1)
    only = (
        replace(plans, weights=replace(plans.weights, overlap=0.0)),
        replace(plans, weights=replace(plans.weights, similarity=0.0)),
    )
    found = [interior(refine(torch.zeros_like(one_way), [level(*pair)], each, 30))[:, 0].mean() for each in only]
    assert found[0] > 0.5
    assert found[1] < -0.5


def test_across_modalities_mind_is_descended(plans):
    true = shifted([1.5, 0.0, 0.0])
    moving = texture()
    inverted = 1 - warp(moving, true) ** 2
    found = refine(torch.zeros_like(true), [level(moving, inverted)], replace(plans, similarity="mind"), 80)
    assert interior(found - true).abs().mean() < 0.6 * interior(true).abs().mean()
    assert interior(found)[:, 0].mean() > 0.5


def test_outside_the_field_of_view_nothing_pulls(plans):
    moving, fixed = texture(seed=5), texture(seed=6)
    zero = torch.zeros(1, 3, *SHAPE)
    nowhere = torch.zeros(1, 1, *SHAPE)
    assert refine(zero, [Level(moving, fixed, nowhere, nowhere, 1)], plans, 5).abs().max() == 0


@pytest.mark.parametrize("sigma", [0.5, 1.732])
def test_smoothing_is_that_of_scipy(sigma):
    field = torch.rand(1, 2, 9, 10, 11, dtype=torch.float64)
    radius = max(1, round(3 * sigma))
    expected = [ndimage.gaussian_filter(channel, sigma, mode="nearest", radius=radius) for channel in field[0].numpy()]
    for found, channel in zip(smooth(field, sigma)[0], expected, strict=True):
        torch.testing.assert_close(found, torch.from_numpy(channel))
