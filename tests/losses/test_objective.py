from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from biasreg.losses.objective import ObjectiveSettings, PairBatch, objective, similarity_term
from biasreg.planning.plans import LossWeights

SHAPE = (8, 8, 8)
NUM_LABELS = 4
SETTINGS = ObjectiveSettings(
    similarity="lncc",
    window=3,
    weights=LossWeights(similarity=1.0, smoothness=0.5, overlap=2.0, segmentation=0.25, consistency=3.0),
    spacing=(1.0, 1.5, 2.0),
    num_labels=NUM_LABELS,
    labels_per_step=8,
)
NAMES = {"similarity", "smoothness", "overlap", "segmentation", "consistency"}


class Output(NamedTuple):
    displacement: Tensor
    moving_logits: Tensor | None
    fixed_logits: Tensor | None


class TinyNetwork(nn.Module):
    """One convolution for the field, one for the segmentation; remembers what it was given."""

    def __init__(self, *, channels=1, head=True):
        super().__init__()
        torch.manual_seed(0)
        self.field = nn.Conv3d(2 * channels, 3, 3, padding=1)
        self.head = nn.Conv3d(channels, NUM_LABELS, 1, stride=2) if head else None
        self.calls = []

    def forward(self, moving, fixed):
        self.calls.append((moving, fixed))
        logits = [self.head(image) if self.head else None for image in (moving, fixed)]
        return Output(self.field(torch.cat([moving, fixed], dim=1)), *logits)


def make_batch(*, batch=2, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(batch, channels, *SHAPE, generator=generator) for _ in range(2)]
    labels = [torch.randint(0, NUM_LABELS, (batch, 1, *SHAPE), generator=generator) for _ in range(2)]
    yes = torch.ones(batch, dtype=torch.bool)
    whole = torch.ones(batch, 1, *SHAPE)
    return PairBatch(*images, *labels, yes, yes, *[whole] * 4)


def run(network, batch, settings=SETTINGS, *, scale=1.0, seed=0):
    generators = [torch.Generator().manual_seed(seed + index) for index in range(len(batch.moving))]
    return objective(network, batch, settings, consistency_scale=scale, generators=generators)


def test_the_total_is_the_weighted_sum_of_the_named_terms():
    result = run(TinyNetwork(), make_batch(), scale=0.5)
    assert set(result.terms) == NAMES
    assert not any(term.requires_grad for term in result.terms.values())
    assert all(term.shape == () and term > 0 for term in result.terms.values())
    weights = {"similarity": 1.0, "smoothness": 0.5, "overlap": 2.0, "segmentation": 0.25, "consistency": 1.5}
    expected = sum(weights[name] * term for name, term in result.terms.items())
    torch.testing.assert_close(result.total.detach(), expected)
    assert result.displacement.shape == (2, 3, *SHAPE)


def test_every_parameter_gets_a_gradient():
    network = TinyNetwork()
    run(network, make_batch()).total.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in network.parameters())


def test_the_masked_pair_goes_through_the_same_network():
    network, batch = TinyNetwork(), make_batch(batch=1)
    run(network, batch)
    assert len(network.calls) == 2
    masked_moving, masked_fixed = network.calls[1]
    for image, labels, masked in (
        (batch.moving, batch.moving_labels, masked_moving),
        (batch.fixed, batch.fixed_labels, masked_fixed),
    ):
        kept = masked != 0
        assert torch.equal(masked[kept], image[kept])
        kept_labels = set(labels[kept].tolist())
        assert kept_labels
        assert 0 not in kept_labels
        assert kept_labels.isdisjoint(labels[~kept].tolist())


def test_consistency_sends_gradient_through_both_passes():
    weights = LossWeights(similarity=0.0, smoothness=0.0, overlap=0.0, segmentation=0.0, consistency=1.0)
    batch = make_batch()
    moving = batch.moving.clone().requires_grad_()
    network = TinyNetwork(head=False)
    outputs = []

    def recorded(*images):
        output = network(*images)
        output.displacement.retain_grad()
        outputs.append(output)
        return output

    run(recorded, batch._replace(moving=moving), replace(SETTINGS, weights=weights)).total.backward()
    assert len(outputs) == 2
    assert all(output.displacement.grad.abs().max() > 0 for output in outputs)


@pytest.mark.parametrize("reason", ["scale", "weight", "labels", "annotation"])
def test_without_consistency_the_network_is_called_once(reason):
    network, batch, settings = TinyNetwork(), make_batch(), SETTINGS
    if reason == "weight":
        settings = replace(settings, weights=replace(settings.weights, consistency=0.0))
    if reason == "labels":
        batch = batch._replace(fixed_labels=torch.zeros_like(batch.fixed_labels))
    if reason == "annotation":
        batch = batch._replace(fixed_annotated=torch.zeros(2, dtype=torch.bool))
    result = run(network, batch, settings, scale=0.0 if reason == "scale" else 1.0)
    assert len(network.calls) == 1
    assert result.terms["consistency"] == 0


def test_pairs_without_labels_still_train_the_field():
    network, batch = TinyNetwork(), make_batch()
    no = torch.zeros(2, dtype=torch.bool)
    nothing = torch.zeros_like(batch.fixed_labels)
    result = run(
        network, batch._replace(moving_labels=nothing, fixed_labels=nothing, moving_annotated=no, fixed_annotated=no)
    )
    result.total.backward()
    assert {name for name, term in result.terms.items() if term == 0} == {"overlap", "segmentation", "consistency"}
    assert network.field.weight.grad.abs().max() > 0
    assert (network.head.weight.grad == 0).all()


def test_labels_missing_in_one_image_do_not_enter_the_overlap():
    batch = make_batch(batch=1)
    batch.fixed_labels[batch.fixed_labels == 3] = 0
    reference = run(TinyNetwork(), batch, scale=0.0).terms["overlap"]
    without = batch.moving_labels.clone()
    without[without == 3] = 0
    torch.testing.assert_close(
        run(TinyNetwork(), batch._replace(moving_labels=without), scale=0.0).terms["overlap"], reference
    )


def test_a_case_without_annotation_adds_nothing_to_the_overlap():
    batch = make_batch()
    annotated = torch.tensor([True, False])
    first = PairBatch(*(entry[:1] for entry in batch))
    torch.testing.assert_close(
        run(TinyNetwork(), batch._replace(moving_annotated=annotated), scale=0.0).terms["overlap"],
        run(TinyNetwork(), first, scale=0.0).terms["overlap"] / 2,
    )


def test_the_objective_of_a_batch_is_the_mean_of_that_of_its_pairs():
    batch = make_batch(batch=3)
    together = run(TinyNetwork(), batch, seed=5)
    single = [
        run(TinyNetwork(), PairBatch(*(entry[index : index + 1] for entry in batch)), seed=5 + index)
        for index in range(3)
    ]
    torch.testing.assert_close(together.total, torch.stack([each.total for each in single]).mean())
    for name, value in together.terms.items():
        torch.testing.assert_close(value, torch.stack([each.terms[name] for each in single]).mean())


def test_each_pair_needs_a_generator_of_its_own():
    with pytest.raises(ValueError, match="1 generators for 2 pairs"):
        objective(TinyNetwork(), make_batch(), SETTINGS, consistency_scale=1.0, generators=[torch.Generator()])


def test_the_generator_chooses_the_labels_of_the_overlap():
    settings = replace(SETTINGS, labels_per_step=1)
    overlaps = [
        run(TinyNetwork(), make_batch(batch=1), settings, scale=0.0, seed=seed).terms["overlap"] for seed in range(12)
    ]
    assert len({round(value.item(), 6) for value in overlaps}) == NUM_LABELS - 1
    again = run(TinyNetwork(), make_batch(batch=1), settings, scale=0.0, seed=0).terms["overlap"]
    assert again == overlaps[0]


def test_the_overlap_of_equal_labels_under_no_displacement_is_no_loss():
    batch = make_batch()
    network = TinyNetwork()
    nn.init.zeros_(network.field.weight)
    nn.init.zeros_(network.field.bias)
    result = run(network, batch._replace(fixed=batch.moving, fixed_labels=batch.moving_labels))
    assert result.terms["overlap"].item() == pytest.approx(0, abs=1e-5)
    assert result.terms["similarity"].item() == pytest.approx(0, abs=1e-3)
    assert result.terms["smoothness"] == 0


@pytest.mark.parametrize("similarity", ["lncc", "mind"])
def test_constant_images_give_finite_terms_and_gradients(similarity):
    network, batch = TinyNetwork(), make_batch()
    flat = torch.zeros_like(batch.moving)
    result = run(network, batch._replace(moving=flat, fixed=flat), replace(SETTINGS, similarity=similarity))
    result.total.backward()
    assert all(term.isfinite() for term in result.terms.values())
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_images_of_several_channels_and_networks_without_a_head_work():
    result = run(TinyNetwork(channels=2, head=False), make_batch(channels=2))
    assert result.terms["segmentation"] == 0
    assert result.total.isfinite()


def test_terms_are_float32_and_as_good_under_autocast():
    reference = run(TinyNetwork(), make_batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = run(TinyNetwork(), make_batch())
    assert result.total.dtype == result.displacement.dtype == torch.float32
    assert all(term.dtype == torch.float32 for term in result.terms.values())
    torch.testing.assert_close(result.total, reference.total, atol=0.02, rtol=0)


def test_training_on_the_objective_aligns_a_shifted_organ():
    moving, fixed = torch.zeros(1, 1, *SHAPE), torch.zeros(1, 1, *SHAPE)
    moving[..., 2:5, 2:6, 2:6] = 1.0
    fixed[..., 3:6, 2:6, 2:6] = 1.0
    yes = torch.ones(1, dtype=torch.bool)
    whole = torch.ones_like(moving)
    batch = PairBatch(moving, fixed, moving.long(), fixed.long(), yes, yes, *[whole] * 4)
    network = TinyNetwork(head=False)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    first = run(network, batch).terms["overlap"]
    for step in range(60):
        optimizer.zero_grad()
        result = run(network, batch, scale=0.5, seed=step)
        result.total.backward()
        optimizer.step()
    assert result.terms["overlap"] < 0.5 * first


def test_bad_settings_and_shapes_are_refused():
    with pytest.raises(ValueError, match="unknown similarity 'ssd'"):
        replace(SETTINGS, similarity="ssd")
    with pytest.raises(ValueError, match="labels_per_step is 0"):
        replace(SETTINGS, labels_per_step=0)
    batch = make_batch()
    with pytest.raises(ValueError, match=r"moving has shape \(2, 1, 8, 8, 8\) but fixed has shape \(2, 1, 8, 8, 7\)"):
        run(TinyNetwork(), batch._replace(fixed=batch.fixed[..., 1:]))


def still(moving, fixed):
    """Register nothing."""
    return Output(torch.zeros(1, 3, *SHAPE), None, None)


def first_slices(count):
    mask = torch.zeros(1, 1, *SHAPE)
    mask[..., :count, :, :] = 1
    return mask


def test_similarity_counts_only_where_both_images_have_values():
    batch, mask = make_batch(batch=1), first_slices(4)
    masked = batch._replace(fixed=torch.where(mask > 0, batch.moving, batch.fixed), fixed_visible=mask)
    assert run(still, batch._replace(fixed=masked.fixed)).terms["similarity"] > 0.1
    assert run(still, masked).terms["similarity"] == pytest.approx(0, abs=1e-3)
    assert run(still, masked._replace(moving_visible=torch.zeros_like(mask))).terms["similarity"] == 0


@pytest.mark.parametrize("side", ["moving_mask", "fixed_mask"])
def test_where_a_users_mask_is_zero_windows_look_but_do_not_count(side):
    batch, mask = make_batch(batch=1), first_slices(4)
    equal_there = batch._replace(fixed=torch.where(mask > 0, batch.moving, batch.fixed))
    everywhere = run(still, equal_there).terms["similarity"]
    masked = run(still, equal_there._replace(**{side: mask})).terms["similarity"]
    assert 1e-2 < masked < everywhere
    assert run(still, equal_there._replace(**{side: torch.zeros_like(mask)})).terms["similarity"] == 0
    assert run(still, batch._replace(**{side: mask})).terms["overlap"] == run(still, batch).terms["overlap"]


@pytest.mark.parametrize("similarity", ["lncc", "mind"])
def test_the_similarity_does_not_fall_by_moving_anatomy_out_of_the_image(similarity):
    batch = make_batch(batch=1)
    constant = batch._replace(moving=torch.full_like(batch.moving, 0.5))
    field = torch.full((1, 3, *SHAPE), 0.4, requires_grad=True)  # nothing but what is seen changes with it
    ramp = torch.linspace(0, 1, SHAPE[0]).view(1, 1, -1, 1, 1).expand_as(constant.moving)
    for pair in (constant, constant._replace(moving_mask=ramp)):
        (slope,) = torch.autograd.grad(similarity_term(pair, field, replace(SETTINGS, similarity=similarity)), field)
        assert slope.abs().max() < 1e-6


def test_what_a_user_excludes_at_the_end_of_an_image_does_not_count():
    batch, seen = make_batch(batch=1), first_slices(5)
    hidden = batch._replace(moving_visible=seen, moving_mask=1 - seen)  # all that is seen is excluded
    assert similarity_term(hidden, torch.full((1, 3, *SHAPE), 0.5), SETTINGS) == 0


@pytest.mark.parametrize("ends", ["moving", "fixed"])
def test_a_label_is_unknown_where_an_image_ends(ends):
    rod = torch.zeros(1, 1, *SHAPE, dtype=torch.int64)
    rod[..., 2:6, 2:6] = 1  # along the first axis
    seen = first_slices(5)
    cut = make_batch(batch=1)._replace(moving_labels=rod, fixed_labels=rod)
    cut = cut._replace(**{f"{ends}_labels": rod * seen.long()})
    assert overlap_and_slope(cut)[0] > 0.1
    value, slope = overlap_and_slope(cut._replace(**{f"{ends}_visible": seen}))
    assert value == pytest.approx(0, abs=1e-6)
    assert slope[:, 0].abs().max() < 1e-6  # nothing pulls at the end of the image
    assert overlap_and_slope(cut._replace(moving_visible=seen, fixed_visible=1 - seen))[0] == 0


def test_a_label_is_unknown_beyond_the_grid():
    rod = torch.zeros(1, 1, *SHAPE, dtype=torch.int64)
    rod[..., 2:6, 2:6] = 1
    batch = make_batch(batch=1)._replace(moving_labels=rod, fixed_labels=rod)
    assert overlap_and_slope(batch, shift=2.5)[0] == pytest.approx(0, abs=1e-6)


def overlap_and_slope(batch, shift=0.0):
    """Give the overlap under a shift along the first axis, and its gradient."""
    field = torch.zeros(1, 3, *SHAPE)
    field[:, 0] = shift
    field.requires_grad_()
    only_overlap = replace(SETTINGS, weights=LossWeights(0.0, 0.0, 1.0, 0.0, 0.0))
    total = run(lambda moving, fixed: Output(field, None, None), batch, only_overlap, scale=0.0).total
    return total.item(), torch.autograd.grad(total, field)[0]
