"""Each part of the method is alive: taking it away changes what is learnt, and saves what the part costs."""

from dataclasses import replace

import pytest
import torch
from test_gradients import PLANS, SETTINGS, make_batch

from biasreg.losses.objective import objective
from biasreg.network.build import build_network
from biasreg.planning.plans import NetworkPlans
from biasreg.training.optimization import build_optimizer, take_step

STEPS = 3
WHOLE = replace(PLANS, correlation_levels=(0, 1, 2, 3))
WITHOUT = {
    "biaf": {"biaf": False},
    "mac": {"mac": False},
    "semantics": {"streams": "intensity"},
    "intensity": {"streams": "semantic"},
    "levels": {"registration_levels": 1, "correlation_levels": (0,)},
}


class Counted:
    """Counts how often a network is called."""

    def __init__(self, network):
        self.network = network
        self.calls = 0

    def __call__(self, moving, fixed):
        self.calls += 1
        return self.network(moving, fixed)


def train(plans: NetworkPlans, weight_of_consistency: float = 1.0):
    """Train a few steps on one pair; give parameters, calls of the network, and the loss of each step."""
    torch.manual_seed(0)
    network = build_network(plans)
    optimizer = build_optimizer(network, 1e-2)
    counted, batch = Counted(network), make_batch()
    settings = replace(SETTINGS, weights=replace(SETTINGS.weights, consistency=weight_of_consistency))
    losses = []
    for step in range(STEPS):
        generators = [torch.Generator().manual_seed(step)]
        terms = objective(counted, batch, settings, consistency_scale=1.0, generators=generators)
        losses.append(take_step(terms, optimizer, 12.0).loss)
    return sum(parameter.numel() for parameter in network.parameters()), counted.calls, losses


@pytest.fixture(scope="module")
def whole():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield train(WHOLE)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("part", WITHOUT)
def test_a_network_without_a_part_is_smaller_and_learns_something_else(whole, part):
    parameters, calls, losses = train(replace(WHOLE, **WITHOUT[part]))
    assert parameters < 0.97 * whole[0]
    assert calls == whole[1]
    assert abs(losses[-1] - whole[2][-1]) > 1e-3


def test_training_without_ardc_calls_the_network_half_as_often_and_learns_something_else(whole):
    parameters, calls, losses = train(WHOLE, weight_of_consistency=0.0)
    assert parameters == whole[0]
    assert 2 * calls == whole[1]
    assert abs(losses[-1] - whole[2][-1]) > 1e-3


def test_the_whole_network_learns(whole):
    assert whole[2][-1] < whole[2][0]
