from dataclasses import replace

import pytest
import torch

from biasreg.core.errors import PlansError
from biasreg.network.build import build_encoder, build_network
from biasreg.network.encoder import ResidualEncoder, SwinEncoder
from biasreg.network.mac import MAC, Concatenation

SWITCHES = [
    {"streams": "semantic"},
    {"streams": "intensity"},
    {"biaf": False},
    {"mac": False},
    {"integration_steps": 7},
    {"correlation_levels": (1, 2)},
    {"checkpointing": True},
    {"num_labels": 1},
    {"registration_levels": 1},
    {"registration_levels": 4},
    {"segmentation_level": 2},
    {"in_channels": 2},
    {"streams": "intensity", "biaf": False, "mac": False, "num_labels": 1},
]


def run(plans, side):
    network = build_network(plans)
    output = network(*torch.rand(2, 1, plans.in_channels, side, side, side))
    objective = output.displacement.square().sum()
    if output.moving_logits is not None:
        objective = objective + output.moving_logits.square().sum() + output.fixed_logits.square().sum()
    objective.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    return network, output


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_every_switch_runs_forward_and_backward_through_all_its_parameters(make_plans, switch):
    plans = make_plans(2, **{"registration_levels": 3, **switch})
    _, output = run(plans, 8)
    has_logits = plans.num_labels > 1 and plans.streams != "intensity"
    assert (output.moving_logits is not None) == has_logits
    assert len(output.fields) == plans.registration_levels


@pytest.mark.parametrize("family", ["swin", "residual"])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_every_family_runs_with_one_to_four_stages(make_plans, family, stages):
    plans = make_plans(stages, family)
    network, _ = run(plans, plans.divisor[0])
    assert isinstance(network.encoder, SwinEncoder if family == "swin" else ResidualEncoder)
    assert network.divisor == plans.divisor == (2 ** (stages + 1),) * 3


def test_single_streams_build_no_second_decoder_and_no_mac(make_plans):
    network = build_network(make_plans(2, streams="semantic"))
    assert network.decoder.intensity is None
    assert len(network.enhancement.levels) == 0


def test_mac_has_no_feed_forward_part_at_the_finest_level(make_plans):
    levels = build_network(make_plans(2, registration_levels=3)).enhancement.levels
    assert [type(level) for level in levels] == [MAC] * 3
    assert [level.feed_forward is not None for level in levels] == [False, True, True]
    without = build_network(make_plans(2, mac=False)).enhancement.levels
    assert [type(level) for level in without] == [Concatenation] * 2


def test_the_encoder_alone_follows_the_plans(make_plans):
    encoder = build_encoder(make_plans(3, "swin").encoder, 2)
    assert encoder.channels == (4, 4, 8, 16, 32)
    assert len(encoder(torch.rand(1, 2, 16, 16, 16))) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_channels": (4, 4)}, "decoder_channels has 2 entries, but the encoder gives 4"),
        ({"registration_levels": 5}, "registration_levels is 5, but must be in 1 … 4"),
        ({"registration_levels": 0}, "registration_levels is 0"),
        ({"segmentation_level": 4}, "segmentation_level is 4, but must be in 0 … 3"),
        ({"correlation_levels": (2,)}, r"correlation_levels is \(2,\), but there are 2 levels"),
        ({"num_labels": 0}, "num_labels 0"),
    ],
)
def test_plans_that_contradict_themselves_are_refused(make_plans, changes, message):
    with pytest.raises(PlansError, match=message):
        build_network(make_plans(2, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": ()}, r"encoder.depths is \(\)"),
        ({"depths": (2,) * 5}, "1 … 4 numbers"),
        ({"heads": (2,)}, "encoder.heads has 1 entries, but encoder.depths 2"),
        ({"heads": (2, 3)}, r"encoder.heads\[1\] is 3, which does not divide 8"),
        ({"window_size": 0}, "window_size is 0"),
    ],
)
def test_an_impossible_encoder_is_refused(make_plans, changes, message):
    plans = make_plans(2, "swin")
    with pytest.raises(PlansError, match=message):
        build_network(replace(plans, encoder=replace(plans.encoder, **changes)))


@pytest.mark.parametrize(
    ("family", "strides", "message"),
    [
        ("residual", ((2, 2, 1),), r"encoder.strides is .* 3 triples of 1 and 2"),
        ("residual", ((4, 2, 1),) * 3, "triples of 1 and 2"),
        ("swin", ((2, 2, 1), (2, 2, 2), (2, 2, 2)), "a Swin encoder halves all axes"),
    ],
)
def test_impossible_strides_are_refused(make_plans, family, strides, message):
    with pytest.raises(PlansError, match=message):
        build_network(make_plans(2, family, strides=strides))


def test_a_coarse_axis_may_be_halved_later(make_plans):
    plans = make_plans(2, strides=((2, 2, 1), (2, 2, 1), (2, 2, 2)), registration_levels=4, correlation_levels=(0, 1))
    assert plans.divisor == (8, 8, 2)
    network = build_network(plans)
    output = network(*torch.rand(2, 1, 1, 16, 24, 6))
    assert [tuple(field.shape[2:]) for field in output.fields] == [(16, 24, 6), (8, 12, 6), (4, 6, 6), (2, 3, 3)]
    units = [level.unit.flatten().tolist() for level in network.registration.levels]
    assert units == [[1, 1, 1], [0.5, 0.5, 1], [0.25, 0.25, 1], [0.125, 0.125, 0.5]]
    output.displacement.square().sum().backward()
    for name, parameter in network.registration.named_parameters():
        assert parameter.grad is not None, name
    with pytest.raises(ValueError, match=r"multiples of \(8, 8, 2\)"):
        network(*torch.rand(2, 1, 1, 16, 24, 5))


def test_all_contradictions_are_reported_together(make_plans):
    with pytest.raises(PlansError, match=r"registration_levels.*segmentation_level"):
        build_network(make_plans(2, registration_levels=9, segmentation_level=9))
