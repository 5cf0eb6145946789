from collections import Counter

import pytest
import torch

from biasreg.losses.ardc import consistency_loss, label_mask, sample_label_subset

SHAPE = (6, 5, 7)


def random_labels(num_labels, *, batch=1, seed=0):
    return torch.randint(0, num_labels, (batch, 1, *SHAPE), generator=torch.Generator().manual_seed(seed))


def organ():
    mask = torch.zeros(1, 1, *SHAPE)
    mask[..., 1:4, 1:4, 2:5] = 1.0
    return mask, torch.rand(1, 2, *SHAPE, generator=torch.Generator().manual_seed(5)) * mask


def random_field(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (0.1 + 0.5 * torch.rand(1, 3, *SHAPE, generator=generator, dtype=dtype)).requires_grad_()


def test_every_non_empty_subset_of_the_common_labels_comes_up_equally_often():
    moving, fixed = random_labels(4), random_labels(4)
    moving[moving == 2] = 0
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(tuple(sample_label_subset(moving, fixed, 4, generator)[0].tolist()) for _ in range(300))
    assert set(drawn) == {(False, True, False, False), (False, False, False, True), (False, True, False, True)}
    assert min(drawn.values()) > 70


def test_a_pair_without_a_common_label_gets_no_subset_beside_one_that_has():
    moving, fixed = random_labels(3, batch=2), random_labels(3, batch=2)
    fixed[0] = 0
    subset = sample_label_subset(moving, fixed, 3, torch.Generator().manual_seed(0))
    assert subset.shape == (2, 3)
    assert subset.any(dim=1).tolist() == [False, True]


def test_the_same_seed_draws_the_same_subset():
    moving, fixed = random_labels(6, batch=2), random_labels(6, batch=2)
    first, second = (sample_label_subset(moving, fixed, 6, torch.Generator().manual_seed(9)) for _ in "ab")
    assert torch.equal(first, second)


def test_the_mask_is_one_on_the_labels_of_the_subset():
    labels = random_labels(4, batch=2)
    mask = label_mask(labels, torch.tensor([[False, True, False, True], [False, False, True, False]]))
    assert mask.dtype == torch.float32
    assert torch.equal(mask[0].bool(), (labels[0] == 1) | (labels[0] == 3))
    assert torch.equal(mask[1].bool(), labels[1] == 2)


def test_equal_fields_are_consistent():
    mask, image = organ()
    field = random_field(0)
    assert consistency_loss(image, field, field, mask, mask) == 0


def test_both_fields_get_a_gradient():
    mask, image = organ()
    field, masked_field = random_field(0), random_field(1)
    consistency_loss(image, field, masked_field, mask, mask).backward()
    assert field.grad.abs().max() > 0
    assert masked_field.grad.abs().max() > 0


def test_the_loss_is_the_mean_difference_over_the_union_of_the_masks():
    mask, _ = organ()
    field, masked_field = torch.zeros(1, 3, *SHAPE), torch.zeros(1, 3, *SHAPE)
    masked_field[:, 0] = 1.0  # the organ of 3×3×3 voxels moves by one voxel: 2 × 9 voxels differ, the union has 36
    assert consistency_loss(0.8 * mask, field, masked_field, mask, mask).item() == pytest.approx(0.8 * 18 / 36)


def test_an_empty_mask_gives_zero_and_a_zero_gradient():
    nothing = torch.zeros(1, 1, *SHAPE)
    field, masked_field = random_field(0), random_field(1)
    loss = consistency_loss(nothing, field, masked_field, nothing, nothing)
    loss.backward()
    assert loss == 0
    assert (field.grad == 0).all()


def test_gradients_are_right_where_the_union_is_everything():
    generator = torch.Generator().manual_seed(2)
    image, everything = torch.rand(1, 1, 3, 2, 3, dtype=torch.float64, generator=generator), torch.ones(1, 1, 3, 2, 3)
    fields = [
        (low + 0.3 * torch.rand(1, 3, 3, 2, 3, dtype=torch.float64, generator=generator)).requires_grad_()
        for low in (0.1, 0.5)
    ]
    assert torch.autograd.gradcheck(
        lambda u, v: consistency_loss(image, u, v, everything.double(), everything.double()), fields
    )


def test_bad_shapes_are_refused_with_both_shapes():
    mask, image = organ()
    field = torch.zeros(1, 3, *SHAPE)
    with pytest.raises(ValueError, match=r"field has shape .* but masked_field has shape \(1, 3, 6, 5, 6\)"):
        consistency_loss(image, field, field[..., 1:], mask, mask)
    with pytest.raises(ValueError, match=r"mask_moving has shape .* but mask_fixed has shape"):
        consistency_loss(image, field, field, mask, mask[..., 1:])
    with pytest.raises(ValueError, match=r"labels have shape \(1, 1, 6, 5, 7\) but subset has shape \(2, 3\)"):
        label_mask(random_labels(3), torch.zeros(2, 3, dtype=torch.bool))
