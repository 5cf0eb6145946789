"""The whole network under the whole objective: nothing in it is left out of training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from biasreg.losses.objective import ObjectiveSettings, PairBatch, objective
from biasreg.network.build import build_network
from biasreg.planning.plans import EncoderPlans, LossWeights, NetworkPlans

SHAPE = (24, 16, 16)
NUM_LABELS = 4
PLANS = NetworkPlans(
    in_channels=1,
    num_labels=NUM_LABELS,
    encoder=EncoderPlans("swin", "scratch", "full", None, 12, (2, 2), (3, 6), 4, ((2, 2, 2),) * 3),
    decoder_channels=(8, 8, 16, 16),
    registration_levels=4,
    segmentation_level=0,
    integration_steps=7,
    correlation_levels=(3,),
    streams="both",
    biaf=True,
    mac=True,
    checkpointing=False,
)
SETTINGS = ObjectiveSettings("lncc", 5, LossWeights(1.0, 1.0, 1.0, 1.0, 1.0), (1.5, 2.0, 2.0), NUM_LABELS, 8)
WITHOUT_EFFECT = 1e-9  # what rounding leaves of a gradient that is zero


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_batch() -> PairBatch:
    """Two blobby label maps, and images that show them."""
    rng = np.random.default_rng(0)
    smooth = [ndimage.gaussian_filter(rng.normal(size=SHAPE), 2.5) for _ in range(2)]
    labels = [np.digitize(field, np.quantile(field, [0.4, 0.6, 0.8])) for field in smooth]
    images = [label / 4 + rng.uniform(0, 0.1, SHAPE) for label in labels]
    moving, fixed = (torch.from_numpy(image).float()[None, None] for image in images)
    moving_labels, fixed_labels = (torch.from_numpy(label)[None, None] for label in labels)
    yes, everywhere = torch.ones(1, dtype=torch.bool), torch.ones(1, 1, *SHAPE)
    return PairBatch(moving, fixed, moving_labels, fixed_labels, yes, yes, *[everywhere] * 4)


def gradients(network) -> dict[str, torch.Tensor | None]:
    result = objective(
        network, make_batch(), SETTINGS, consistency_scale=1.0, generators=[torch.Generator().manual_seed(0)]
    )
    assert all(value > 0 for name, value in result.terms.items() if name != "consistency")
    result.total.backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("family", ["swin", "residual"])
def test_every_parameter_gets_a_finite_gradient_from_the_first_step_on(family):
    torch.manual_seed(0)
    network = build_network(replace(PLANS, encoder=replace(PLANS.encoder, family=family)))
    found = gradients(network)
    assert [name for name, gradient in found.items() if gradient is None] == []
    assert [name for name, gradient in found.items() if not torch.isfinite(gradient).all()] == []


def test_every_weight_matters_once_training_has_moved_it():
    torch.manual_seed(0)
    network = build_network(PLANS)
    with torch.no_grad():
        for parameter in network.parameters():  # some start at zero, which keeps the gradient from those before them
            parameter.add_(0.02 * torch.randn_like(parameter))
    found = gradients(network)
    still = [name for name, gradient in found.items() if gradient.abs().max() < WITHOUT_EFFECT]
    assert still == []


def test_both_decoders_learn_from_registration_alone():
    torch.manual_seed(0)
    network = build_network(PLANS)
    batch = make_batch()
    none = torch.zeros(1, dtype=torch.bool)
    unlabelled = batch._replace(moving_annotated=none, fixed_annotated=none)
    result = objective(
        network, unlabelled, SETTINGS, consistency_scale=1.0, generators=[torch.Generator().manual_seed(0)]
    )
    assert result.terms["overlap"] == result.terms["segmentation"] == result.terms["consistency"] == 0
    result.total.backward()
    for decoder in (network.decoder.semantic, network.decoder.intensity):
        assert max(parameter.grad.abs().max() for parameter in decoder.parameters()) > 0
