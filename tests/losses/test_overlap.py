import pytest
import torch
import torch.nn.functional as F

from biasreg.losses.overlap import label_fractions, labels_in_both, one_hot, segmentation_loss, soft_dice_loss

SHAPE = (6, 4, 8)


def random_labels(num_labels=4, *, batch=2, seed=0):
    return torch.randint(0, num_labels, (batch, 1, *SHAPE), generator=torch.Generator().manual_seed(seed))


def test_one_hot_maps_follow_the_order_of_the_classes():
    labels = random_labels()
    maps = one_hot(labels, [3, 1])
    assert torch.equal(maps[:, :1], (labels == 3).float())
    assert torch.equal(maps[:, 1:], (labels == 1).float())
    assert torch.equal(one_hot(labels, 4).argmax(dim=1, keepdim=True), labels)


def test_label_fractions_count_the_fine_voxels_of_each_coarse_one():
    labels = random_labels()
    fractions = label_fractions(labels, 4, (3, 4, 2))
    torch.testing.assert_close(fractions.sum(dim=1), torch.ones(2, 3, 4, 2))
    block = labels[1, 0, 2:4, 1, 4:8]
    assert fractions[1, 2, 1, 1, 1].item() == pytest.approx((block == 2).float().mean().item())
    assert torch.equal(label_fractions(labels, 4, SHAPE), one_hot(labels, 4))


def test_label_fractions_refuse_a_grid_that_does_not_divide():
    with pytest.raises(ValueError, match=r"labels have shape \(2, 1, 6, 4, 8\), which the grid \(4, 4, 8\) does not"):
        label_fractions(random_labels(), 4, (4, 4, 8))


def test_labels_in_both_leaves_out_background_and_what_one_image_misses():
    moving, fixed = torch.zeros(2, 1, *SHAPE, dtype=torch.int64), torch.zeros(2, 1, *SHAPE, dtype=torch.int64)
    moving[0, 0, 0, 0, :3] = torch.tensor([1, 2, 4])
    fixed[0, 0, 1, 1, :2] = torch.tensor([4, 3])
    moving[1] = 2
    assert labels_in_both(moving, fixed, 5).tolist() == [[False, False, False, False, True], [False] * 5]


def test_dice_of_equal_and_of_disjoint_maps():
    maps = one_hot(random_labels(), [1, 2, 3])
    every = torch.ones(2, 3, dtype=torch.bool)
    assert soft_dice_loss(maps, maps, every).item() == pytest.approx(0, abs=1e-6)
    assert soft_dice_loss(maps, maps.roll(1, dims=1), every).item() == pytest.approx(1)


def test_dice_is_twice_the_overlap_over_the_sum():
    warped, fixed = torch.zeros(1, 1, *SHAPE), torch.zeros(1, 1, *SHAPE)
    warped[..., 0:2] = 0.5
    fixed[..., 1:4] = 1.0
    loss = soft_dice_loss(warped, fixed, torch.ones(1, 1, dtype=torch.bool))
    assert loss.item() == pytest.approx(1 - 2 * 0.5 / (0.5 * 2 + 3))


def test_invalid_labels_change_neither_dice_nor_its_gradient():
    fixed = one_hot(random_labels(seed=1), [1, 2, 3])
    warped = torch.rand(fixed.shape, requires_grad=True)
    valid = torch.tensor([[True, False, True], [False, False, False]])
    (gradient,) = torch.autograd.grad(soft_dice_loss(warped, fixed, valid), warped)
    assert gradient[~valid].abs().max() == 0
    assert (gradient[valid].abs().amax(dim=(1, 2, 3)) > 0).all()
    only_valid = soft_dice_loss(warped[:1, ::2], fixed[:1, ::2], torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(soft_dice_loss(warped, fixed, valid), only_valid)


def test_dice_of_nothing_valid_is_zero_with_a_zero_gradient():
    warped = torch.zeros(1, 2, *SHAPE, requires_grad=True)
    loss = soft_dice_loss(warped, torch.zeros(1, 2, *SHAPE), torch.zeros(1, 2, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, warped)
    assert loss == 0
    assert (gradient == 0).all()


def test_segmentation_loss_is_cross_entropy_plus_dice_on_one_grid():
    labels = random_labels()
    logits = torch.randn(2, 4, *SHAPE, generator=torch.Generator().manual_seed(2))
    dice = soft_dice_loss(logits.softmax(1)[:, 1:], one_hot(labels, [1, 2, 3]), torch.ones(2, 3, dtype=torch.bool))
    expected = F.cross_entropy(logits, labels.squeeze(1)) + dice
    torch.testing.assert_close(segmentation_loss(logits, labels, torch.tensor([True, True])), expected)


def test_segmentation_of_the_right_answer_is_no_loss():
    labels = random_labels()
    loss = segmentation_loss(50 * one_hot(labels, 4), labels, torch.tensor([True, True]))
    assert loss.item() == pytest.approx(0, abs=1e-4)


def test_a_label_that_a_case_does_not_show_may_be_found_in_its_background():
    labels = random_labels(num_labels=3)  # label 3 is in neither case
    logits = torch.randn(2, 4, *SHAPE, generator=torch.Generator().manual_seed(2))
    annotated = torch.tensor([True, True])
    exchanged = torch.where(labels == 0, logits[:, [3, 1, 2, 0]], logits)
    torch.testing.assert_close(
        segmentation_loss(exchanged, labels, annotated), segmentation_loss(logits, labels, annotated)
    )
    found = 50 * one_hot(torch.where(labels == 0, 3, labels), 4)
    assert segmentation_loss(found, labels, annotated).item() == pytest.approx(0, abs=1e-4)
    labels[0, 0, 0, 0, 0] = 3  # the first case shows it after all
    assert segmentation_loss(found, labels, annotated) > 1


def test_cases_without_annotation_are_ignored_by_the_segmentation_loss():
    logits = torch.randn(2, 4, 3, 2, 4, requires_grad=True)
    labels = random_labels()
    loss = segmentation_loss(logits, labels, torch.tensor([False, True]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[0] == 0).all()
    assert gradient[1].abs().max() > 0
    torch.testing.assert_close(loss, segmentation_loss(logits[1:], labels[1:], torch.tensor([True])))


def test_segmentation_without_any_annotation_is_zero_with_a_zero_gradient():
    logits = torch.randn(2, 4, *SHAPE, requires_grad=True)
    loss = segmentation_loss(logits, random_labels(), torch.tensor([False, False]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss == 0
    assert (gradient == 0).all()


def test_gradients_of_dice_and_segmentation_are_right():
    labels = torch.randint(0, 3, (1, 1, 2, 2, 4), generator=torch.Generator().manual_seed(0))
    logits = torch.randn(1, 3, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: segmentation_loss(x, labels, torch.tensor([True])), logits)
    warped = torch.rand(1, 2, 2, 2, 4, dtype=torch.float64, requires_grad=True)
    fixed = one_hot(labels, [1, 2]).double()
    assert torch.autograd.gradcheck(lambda x: soft_dice_loss(x, fixed, torch.tensor([[True, False]])), warped)


def test_half_precision_logits_give_a_float32_loss():
    logits = torch.randn(2, 4, *SHAPE).to(torch.bfloat16)
    assert segmentation_loss(logits, random_labels(), torch.tensor([True, True])).dtype == torch.float32


def test_bad_shapes_are_refused_with_both_shapes():
    labels = random_labels()
    with pytest.raises(ValueError, match=r"labels are torch.float32 of shape \(2, 1, 6, 4, 8\)"):
        one_hot(labels.float(), 4)
    with pytest.raises(ValueError, match=r"moving_labels has shape \(2, .*fixed_labels has shape \(1, "):
        labels_in_both(labels, labels[:1], 4)
    maps = one_hot(labels, 3)
    with pytest.raises(ValueError, match=r"valid has shape \(2, 4\) but the maps have shape \(2, 3, 6, 4, 8\)"):
        soft_dice_loss(maps, maps, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"warped_one_hot has shape .* but fixed_one_hot has shape"):
        soft_dice_loss(maps, maps[:, :2], torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"logits have shape \(1, 4, .*labels \(2, 1, .*annotated \(2,\)"):
        segmentation_loss(torch.zeros(1, 4, *SHAPE), labels, torch.ones(2, dtype=torch.bool))
