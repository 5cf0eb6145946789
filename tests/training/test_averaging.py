import pytest
import torch
from torch import nn

from biasreg.training.averaging import WeightAverage


def make_network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    network[0].requires_grad_(False)
    return network


def test_the_average_follows_its_formula():
    network = make_network()
    average = WeightAverage(network, 0.5)
    expected = network[1].weight.detach().clone()
    for step, value in enumerate((1.0, 2.0, 4.0, 8.0)):
        with torch.no_grad():
            network[1].weight.fill_(value)
        average.update(network, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.network[1].weight, expected)
    assert (network[1].weight == 8).all()


def test_only_what_trains_is_averaged_and_saved():
    network = make_network()
    average = WeightAverage(network, 0.9)
    assert set(average.state()) == {"1.weight", "1.bias"}
    assert [parameter.requires_grad for parameter in average.network.parameters()] == [False, False, True, True]
    assert average.network[0].weight is network[0].weight
    assert average.network[1].weight is not network[1].weight


def test_a_restored_average_goes_on_as_if_nothing_had_happened():
    network = make_network()
    average, other = WeightAverage(network, 0.9), WeightAverage(network, 0.9)
    with torch.no_grad():
        network[1].weight.add_(1.0)
    average.update(network, 7)
    state = {name: value.clone() for name, value in average.state().items()}
    other.restore(state)
    for each in (average, other):
        each.update(network, 8)
    torch.testing.assert_close(other.state(), average.state(), rtol=0, atol=0)


def test_a_state_of_other_weights_is_refused():
    with pytest.raises(KeyError):
        WeightAverage(make_network(), 0.9).restore({})
