from dataclasses import replace

import pytest
from dataset_kinds import KINDS, make_dataset, make_fingerprint

from biasreg.core.errors import PlansError
from biasreg.planning.consistency import check_configuration
from biasreg.planning.encoder_rules import NOT_INSTALLED, EncoderWish, check_choice, choose_encoder
from biasreg.planning.grid_rules import Layout
from biasreg.planning.network_rules import CPU_WIDTH, HALF_WIDTH, PAPER_WIDTH, describe_network
from biasreg.planning.overrides import lost_changes
from biasreg.planning.planner import Target, plan_experiment
from biasreg.planning.plans import LoraPlans

DEEP = Layout((160, 192, 160), ((2, 2, 2),) * 5)
SHALLOW = Layout((64, 64, 64), ((2, 2, 2),) * 4)
FLAT = Layout((128, 128, 16), ((2, 2, 1), (2, 2, 1), (2, 2, 2)))
ALL = ("voco_b", "voco_l", "voco_h")


def wish(choice="auto", installed=("voco_b",), device="cuda", modality="CT"):
    return EncoderWish(choice, installed, device, modality)


def plan(kind, memory=80.0, **target):
    device = target.pop("device", "cuda")
    return plan_experiment(make_fingerprint(kind), make_dataset(kind), Target(device, memory, **target))


def default(plans):
    return plans.configurations[plans.default_configuration]


def test_installed_weights_of_voco_are_used_with_adapters_on_a_gpu():
    encoder, why = choose_encoder(PAPER_WIDTH, DEEP, wish())
    assert (encoder.family, encoder.init, encoder.tuning) == ("swin", "voco_b", "lora")
    assert encoder.lora == LoraPlans(8, 8.0, mlp=False)
    assert (encoder.feature_size, encoder.depths, encoder.heads) == (48, (2, 2, 2, 2), (3, 6, 12, 24))
    assert "VoCo-B is installed" in why


@pytest.mark.parametrize("modality", ["MRI", "mixed"])
def test_images_unlike_vocos_get_adapters_in_the_mlps_too(modality):
    encoder, why = choose_encoder(PAPER_WIDTH, DEEP, wish(modality=modality))
    assert encoder.lora.mlp
    assert f"{modality} is not the CT" in why


def test_without_weights_the_encoder_is_from_scratch_and_that_is_said_loudly():
    encoder, why = choose_encoder(PAPER_WIDTH, DEEP, wish(installed=()))
    assert (encoder.family, encoder.init, encoder.tuning, encoder.lora) == ("residual", "scratch", "full", None)
    assert why.startswith(NOT_INSTALLED)
    assert "biasreg_install_pretrained voco_b" in why
    _, other = choose_encoder(PAPER_WIDTH, DEEP, wish(installed=("voco_l",)))
    assert "VoCo-L would be taken by --encoder voco_l" in other


@pytest.mark.parametrize(
    ("width", "layout", "device", "reason"),
    [
        (HALF_WIDTH, DEEP, "cuda", "does not hold VoCo-B's width"),
        (PAPER_WIDTH, SHALLOW, "cuda", "halves a grid 5 times, and this one allows 4"),
        (PAPER_WIDTH, FLAT, "cuda", "halves all axes at once"),
        (CPU_WIDTH, SHALLOW, "cpu", "on a CPU a step of VoCo-B takes minutes"),
        (CPU_WIDTH, FLAT, "cpu", "on a CPU"),
    ],
)
def test_where_voco_does_not_fit_the_reason_is_given(width, layout, device, reason):
    encoder, why = choose_encoder(width, layout, wish(device=device))
    assert (encoder.init, encoder.family, encoder.feature_size) == ("scratch", "residual", width.feature_size)
    assert len(encoder.depths) == len(layout.strides) - 1
    assert reason in why


def test_a_user_may_name_the_encoder():
    for choice in ("swin", "residual"):
        encoder = choose_encoder(PAPER_WIDTH, DEEP, wish(choice)).value
        assert (encoder.family, encoder.init) == (choice, "scratch")
    wide = PAPER_WIDTH._replace(feature_size=96)
    assert choose_encoder(wide, DEEP, wish("voco_l", installed=ALL)).value.init == "voco_l"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (wish("voco_l"), r"voco_l, but its weights are not installed \(installed: VoCo-B\) · run .*VoCo_L_SSL_head"),
        (wish("voco_b", installed=()), "none is installed"),
        (wish("voco_b", device="cpu"), "takes minutes on a CPU · .*-gpu_memory_target"),
    ],
)
def test_a_named_voco_that_no_grid_makes_possible_is_refused(asked, message):
    with pytest.raises(PlansError, match=message):
        check_choice(asked)


@pytest.mark.parametrize(
    ("choice", "layout", "message"),
    [
        ("voco_b", FLAT, "voco_b, but a Swin encoder halves all axes .* isotropic voxels"),
        ("voco_b", SHALLOW, "halves a grid 5 times, and this one allows 4 · plan finer voxels"),
        ("swin", FLAT, "swin, but a Swin encoder halves all axes"),
    ],
)
def test_a_named_encoder_that_the_grid_does_not_allow_is_refused(choice, layout, message):
    with pytest.raises(PlansError, match=message):
        choose_encoder(PAPER_WIDTH, layout, wish(choice))


def test_plans_for_a_gpu_use_what_is_installed_and_those_for_a_cpu_do_not():
    brain = KINDS["brain MR, OASIS"]
    plans = plan(brain, installed=ALL)
    chosen = default(plans)
    check_configuration(plans.default_configuration, chosen)
    assert (chosen.network.encoder.init, chosen.network.encoder.lora.mlp) == ("voco_b", True)
    assert describe_network(chosen.network, "lncc").startswith("VoCo-B (LoRA) swin 48, decoders from 16")
    cpu = plan(brain, device="cpu", installed=ALL)
    assert default(cpu).network.encoder.init == "scratch"
    loud = plan(brain)
    assert NOT_INSTALLED in loud.why[loud.default_configuration]["encoder"]


def test_a_named_encoder_that_the_memory_does_not_hold_is_refused():
    with pytest.raises(PlansError, match=r"--encoder voco_h, but .* does NOT fit .* plan for more memory"):
        plan(KINDS["brain MR, OASIS"], 8.0, installed=ALL, encoder="voco_h")


def test_a_named_encoder_is_kept_at_a_coarser_grid_if_that_is_what_fits():
    plans = plan(KINDS["abdominal CT"], 40.0, installed=ALL, encoder="voco_b")
    assert {made.network.encoder.init for made in plans.configurations.values()} == {"voco_b"}
    assert plans.why[plans.default_configuration]["encoder"] == "set by the user"


def test_a_named_encoder_that_is_not_named_again_is_reported_as_lost():
    kind = KINDS["brain MR, OASIS"]
    named, automatic = plan(kind, encoder="residual"), plan(kind)
    assert "3d_fullres.encoder" in lost_changes(automatic, named)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": None}, "encoder.tuning is 'lora', but encoder.lora is None"),
        ({"tuning": "frozen"}, "encoder.tuning is 'frozen', but encoder.lora is LoraPlans"),
        ({"lora": LoraPlans(0, 8.0, mlp=False)}, "rank 0 and alpha 8.0, but both must be above 0"),
        ({"init": "scratch"}, "gives no weights worth keeping"),
        ({"init": "voco_l"}, "shape is not the one of encoder.init 'voco_l'"),
        ({"window_size": 4}, "shape is not the one of encoder.init 'voco_b'"),
        ({"family": "residual"}, "encoder.lora adapts the attention of a Swin encoder"),
    ],
)
def test_a_tuning_that_contradicts_itself_is_refused(changes, message):
    plans = plan(KINDS["brain MR, OASIS"], installed=ALL)
    chosen = default(plans)
    encoder = replace(chosen.network.encoder, **changes)
    with pytest.raises(PlansError, match=message):
        check_configuration("c", replace(chosen, network=replace(chosen.network, encoder=encoder)))


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_voco_can_be_tuned_in_every_way(tuning):
    chosen = default(plan(KINDS["brain MR, OASIS"], installed=ALL))
    encoder = replace(chosen.network.encoder, tuning=tuning, lora=None)
    check_configuration("c", replace(chosen, network=replace(chosen.network, encoder=encoder)))
