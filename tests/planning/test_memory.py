from dataclasses import replace

import pytest
from dataset_kinds import KINDS, make_dataset, make_fingerprint

from biasreg.planning.memory import step_memory_gib, step_terms, usable_memory_gib
from biasreg.planning.planner import Target, plan_experiment


@pytest.fixture(scope="module")
def configuration():
    kind = KINDS["hippocampus MR"]
    plans = plan_experiment(make_fingerprint(kind), make_dataset(kind), Target("cuda", 24.0))
    made = plans.configurations[plans.default_configuration]
    return replace(made, training=replace(made.training, batch_size=1))


def changed(configuration, **changes):
    parts = {"network": {}, "training": {}, "preprocessing": {}}
    for name, value in changes.items():
        part = next(part for part in parts if hasattr(getattr(configuration, part), name))
        parts[part][name] = value
    return replace(configuration, **{part: replace(getattr(configuration, part), **new) for part, new in parts.items()})


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "changes",
    [
        {"patch_size": (48, 56, 48)},
        {"batch_size": 2},
        {"decoder_channels": (32, 32, 64, 128)},
        {"num_labels": 30},
    ],
)
def test_more_of_anything_takes_more_memory(configuration, device, changes):
    assert step_memory_gib(changed(configuration, **changes), device) > step_memory_gib(configuration, device)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_recomputing_and_leaving_out_the_second_pass_save_memory(configuration, device):
    whole = step_memory_gib(configuration, device)
    assert step_memory_gib(changed(configuration, checkpointing=True), device) < 0.7 * whole
    single = changed(configuration, weights=replace(configuration.training.weights, consistency=0.0))
    assert step_memory_gib(single, device) < 0.8 * whole
    assert step_terms(single).decoded == step_terms(configuration).decoded / 2


def test_a_gpu_in_bfloat16_takes_less_than_a_cpu_for_the_same_step(configuration):
    large = changed(configuration, patch_size=(80, 112, 80))
    assert step_memory_gib(large, "cuda") < step_memory_gib(large, "cpu")


def test_windows_are_no_larger_than_their_grid(configuration):
    encoder = replace(configuration.network.encoder, family="swin", window_size=1000)
    wide = replace(configuration.network, encoder=encoder)
    terms = step_terms(replace(configuration, network=wide))
    tokens = [20 * 28 * 20, 10 * 14 * 10]
    entries = [2 * heads * 2 * count * count for heads, count in zip((3, 6), tokens, strict=True)]  # passes, blocks
    assert terms.attention == sum(entries)


def test_not_all_of_a_device_is_usable():
    assert 0.5 * 24 < usable_memory_gib("cuda", 24.0) < 24
