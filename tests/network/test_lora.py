import copy

import pytest
import torch
from torch import nn

from biasreg.network.build import build_network
from biasreg.network.lora import LoraLinear, add_lora, merge_lora

IMAGE = (1, 1, 8, 16, 8)


def adapters(module):
    return {name for name, _ in module.named_parameters() if name.endswith(("lora_down", "lora_up"))}


def adapted(encoder, *, mlp=True, trained=True):
    """Adapt a copy of an encoder, with adapters that change its output if `trained`."""
    other = copy.deepcopy(encoder)
    add_lora(other, rank=2, alpha=4.0, mlp=mlp)
    if trained:
        for name, parameter in other.named_parameters():
            if name.endswith("lora_up"):
                nn.init.normal_(parameter.data, std=0.2)
    return other


def test_a_layer_is_the_equation_of_lora():
    base = nn.Linear(3, 5)
    layer = LoraLinear(base, rank=2, alpha=6.0)
    nn.init.normal_(layer.lora_up)
    features = torch.rand(4, 7, 3)
    low_rank = features @ layer.lora_down.T @ layer.lora_up.T
    torch.testing.assert_close(layer(features), base(features) + 6 / 2 * low_rank)
    assert layer.lora_down.shape == (2, 3)
    assert layer.lora_up.shape == (5, 2)


def test_an_adapted_encoder_starts_equal_to_its_base(make_encoder):
    encoder = make_encoder()
    image = torch.rand(IMAGE)
    for one, other in zip(encoder(image), adapted(encoder, trained=False)(image), strict=True):
        assert torch.equal(one, other)


def test_the_names_of_the_base_stay(make_encoder):
    encoder = make_encoder()
    other = adapted(encoder)
    assert set(other.state_dict()) - adapters(other) == set(encoder.state_dict())


def test_attention_is_adapted_and_mlps_on_request_and_nothing_else(make_encoder):
    encoder = make_encoder()
    blocks = 4
    assert len(adapters(adapted(encoder, mlp=False))) == 2 * 2 * blocks
    both = adapted(encoder)
    layers = {name for name, module in both.named_modules() if isinstance(module, LoraLinear)}
    assert len(layers) == 4 * blocks
    assert {".".join(name.split(".")[-2:]) for name in layers} == {
        "attn.qkv",
        "attn.proj",
        "mlp.linear1",
        "mlp.linear2",
    }
    assert isinstance(both.swinViT.patch_embed.proj, nn.Conv3d)


def test_adapters_alone_train_and_all_of_them_do(make_encoder):
    encoder = adapted(make_encoder())
    assert {name for name, each in encoder.named_parameters() if each.requires_grad} == adapters(encoder)
    sum(features.square().sum() for features in encoder(torch.rand(IMAGE))).backward()
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_merged_adapters_give_the_same_outputs_by_plain_layers(make_encoder, dtype, tolerance):
    encoder = adapted(make_encoder()).to(dtype)
    image = torch.rand(IMAGE, dtype=dtype)
    expected = encoder(image)
    unadapted = make_encoder().to(dtype)
    unadapted.load_state_dict({name: each for name, each in encoder.state_dict().items() if "lora" not in name})
    assert (unadapted(image)[-1] - expected[-1]).abs().max() > 100 * tolerance
    merge_lora(encoder)
    assert {type(module) for module in encoder.modules()}.isdisjoint({LoraLinear})
    assert set(encoder.state_dict()) == set(unadapted.state_dict())
    for one, other in zip(encoder(image), expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def test_a_layer_without_bias_merges_too():
    layer = LoraLinear(nn.Linear(3, 5, bias=False), rank=1, alpha=1.0)
    nn.init.normal_(layer.lora_up)
    features = torch.rand(2, 3)
    expected = layer(features)
    torch.testing.assert_close(layer.merged()(features), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tuning", ["lora", "frozen", "full"])
def test_the_plans_say_what_of_the_network_trains(make_voco_plans, tuning, checkpointing):
    network = build_network(make_voco_plans(tuning, checkpointing=checkpointing))
    output = network(*torch.rand(2, 1, 1, 8, 8, 8))
    (output.displacement.square().sum() + output.moving_logits.square().sum()).backward()
    trained = {name for name, each in network.named_parameters() if each.grad is not None}
    assert trained == {name for name, each in network.named_parameters() if each.requires_grad}
    of_encoder = {name for name in trained if name.startswith("encoder.")}
    expected = {"lora": adapters(network), "frozen": set(), "full": set(dict(network.encoder.named_parameters()))}
    assert {name.removeprefix("encoder.") for name in of_encoder} == {
        name.removeprefix("encoder.") for name in expected[tuning]
    }
    assert any(name.startswith("decoder.") for name in trained)
