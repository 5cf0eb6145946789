from dataclasses import replace

import numpy as np
import pytest
from dataset_kinds import KINDS, make_dataset, make_fingerprint

from biasreg.core.errors import DatasetError, PlansError
from biasreg.core.serialization import from_json, to_json
from biasreg.network.build import build_network
from biasreg.planning import grid_rules
from biasreg.planning.consistency import check_configuration
from biasreg.planning.decision import Decision
from biasreg.planning.memory import CPU_VOXEL_BUDGET, step_memory_gib, usable_memory_gib
from biasreg.planning.planner import Target, plan_experiment
from biasreg.planning.plans import Plans

BRAIN, HIPPOCAMPUS = KINDS["brain MR, OASIS"], KINDS["hippocampus MR"]
TARGETS = [Target("cpu", 16.0), Target("cuda", 8.0), Target("cuda", 24.0), Target("cuda", 80.0)]
CPU = TARGETS[0]


def plan(kind, target=CPU, **changes):
    return plan_experiment(make_fingerprint(kind), make_dataset(kind, **changes), target)


def default(plans):
    return plans.configurations[plans.default_configuration]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.device}{target.memory_gib:g}")
def test_the_default_fits_the_device_covers_the_field_of_view_and_says_why(name, target):
    kind = KINDS[name]
    plans = plan(kind, target)
    chosen = default(plans)
    preprocessing, network = chosen.preprocessing, chosen.network
    check_configuration(plans.default_configuration, chosen)
    covered = np.array(preprocessing.patch_size) * preprocessing.spacing
    shown = kind.label_extent if preprocessing.crop == "labels" else kind.anatomy
    assert (covered >= np.array(shown)).all()
    assert (np.array(preprocessing.spacing) >= np.array(kind.spacing) - 1e-6).all()
    assert step_memory_gib(chosen, target.device) <= usable_memory_gib(target.device, target.memory_gib)
    if target.device == "cpu":
        assert np.prod(preprocessing.patch_size) <= CPU_VOXEL_BUDGET
    assert network.registration_levels <= len(network.encoder.strides) + 1
    assert (plans.default_configuration == "3d_lowres") == (
        "coarsened" in plans.why["3d_lowres"]["spacing"] if "3d_lowres" in plans.why else False
    )
    assert set(plans.why) == set(plans.configurations)
    assert all(reason for reasons in plans.why.values() for reason in reasons.values())
    assert from_json(Plans, to_json(plans)) == plans


@pytest.mark.parametrize("name", KINDS)
def test_more_memory_never_makes_voxels_coarser(name):
    volumes = [np.prod(default(plan(KINDS[name], target)).preprocessing.spacing) for target in TARGETS]
    assert volumes == sorted(volumes, reverse=True)


def test_what_does_not_fit_stays_in_the_plans_for_a_larger_device():
    plans = plan(BRAIN)
    assert set(plans.configurations) == {"3d_lowres", "3d_fullres"}
    assert plans.default_configuration == "3d_lowres"
    assert plans.configurations["3d_fullres"].preprocessing.spacing == (1.0, 1.0, 1.0)
    assert "does NOT fit" in plans.why["3d_fullres"]["memory"]
    assert "which fits" in plans.why["3d_lowres"]["memory"]
    assert set(plan(HIPPOCAMPUS, Target("cuda", 24.0)).configurations) == {"3d_fullres"}


def test_checkpointing_gives_way_before_width_and_width_before_resolution():
    chosen = {memory: default(plan(BRAIN, Target("cuda", memory))) for memory in (1000.0, 100.0, 24.0, 8.0)}
    efforts = [(made.network.checkpointing, made.network.decoder_channels[0]) for made in chosen.values()]
    spacings = [made.preprocessing.spacing[0] for made in chosen.values()]
    assert efforts[0] == (False, 16)
    assert efforts[1] == (True, 16)
    assert efforts[2][0]
    assert spacings[2] == 1.0
    assert spacings[3] > 1.0


def test_a_small_grid_gets_more_pairs_in_a_step_on_a_gpu_only():
    assert default(plan(HIPPOCAMPUS, Target("cuda", 80.0))).training.batch_size == 4
    assert default(plan(HIPPOCAMPUS, Target("cpu", 80.0))).training.batch_size == 1


@pytest.mark.parametrize(("memory", "expected"), [(24.0, "3d_fullres"), (5.0, "3d_lowres")])
def test_the_configuration_is_named_after_the_spacing_whatever_the_reasons_say(memory, expected, monkeypatch):
    choose = grid_rules.choose_spacing
    monkeypatch.setattr(grid_rules, "choose_spacing", lambda facts: Decision(choose(facts).value, "not coarsened"))
    assert plan(KINDS["neonatal brain MR"], Target("cuda", memory)).default_configuration == expected


def test_a_user_may_set_the_spacing_and_the_grid_follows():
    plans = plan(BRAIN, Target("cpu", 16.0, spacing=(8.0, 8.0, 8.0)))
    chosen = default(plans)
    assert (plans.default_configuration, chosen.preprocessing.spacing) == ("3d_lowres", (8.0, 8.0, 8.0))
    assert plans.why["3d_lowres"]["spacing"] == "set by the user"
    assert (np.array(chosen.preprocessing.patch_size) * 8 >= BRAIN.anatomy).all()
    too_fine = plan(BRAIN, Target("cuda", 8.0, spacing=(0.5, 0.5, 0.5)))
    assert "does NOT fit" in too_fine.why["3d_fullres"]["memory"]


def test_anisotropic_grids_get_a_residual_pyramid_that_halves_the_long_axis_later():
    network = default(plan(KINDS["cardiac MR, short axis"], Target("cuda", 24.0))).network
    assert network.encoder.family == "residual"
    assert network.encoder.strides[:2] == ((2, 2, 1), (2, 2, 1))
    isotropic = default(plan(BRAIN, Target("cuda", 24.0))).network.encoder
    assert set(isotropic.strides) == {(2, 2, 2)}


def test_one_odd_case_changes_nothing_but_the_report():
    odd, plain = (plan(KINDS[name], Target("cuda", 24.0)) for name in ("brain MR with one odd case", "brain MR, OASIS"))
    assert default(odd) == default(plain)
    centred = plan(replace(KINDS["brain MR with one odd case"], scores=(0.3, 0.5)), Target("cuda", 24.0))
    assert "1 of 30 cases are larger (c029)" in centred.why[centred.default_configuration]["field_of_view"]


def test_anatomy_off_the_centre_that_all_share_gets_room():
    kind = replace(BRAIN, scores=(0.5,))
    fingerprint = make_fingerprint(kind)
    odd = tuple(replace(case, foreground_center=(0.0, 40.0, 0.0)) for case in fingerprint.cases[:4])
    fingerprint = replace(fingerprint, cases=odd + fingerprint.cases[4:])
    plans = [
        plan_experiment(each, make_dataset(kind), Target("cuda", 24.0, spacing=(2.0, 2.0, 2.0)))
        for each in (fingerprint, make_fingerprint(kind))
    ]
    off, on = (default(each).preprocessing.patch_size for each in plans)
    assert off[1] > on[1]
    assert off[0] == on[0]


def test_a_memory_that_holds_no_step_at_all_is_refused():
    with pytest.raises(PlansError, match="no grid is coarse enough that the memory holds a step"):
        plan(HIPPOCAMPUS, Target("cuda", 0.5))


def test_a_grid_is_cropped_to_the_labels_where_they_show_a_part_only():
    plans = plan(KINDS["head and neck CT"])
    preprocessing = default(plans).preprocessing
    assert (preprocessing.prealignment, preprocessing.crop) == ("affine_focus", "labels")
    assert max(np.array(preprocessing.patch_size) * preprocessing.spacing) < 200
    assert default(plan(BRAIN)).preprocessing.crop == "anatomy"


@pytest.mark.parametrize("name", ["hippocampus MR", "cardiac MR, short axis"])
def test_a_network_can_be_built_from_the_plans_of_a_cpu(name):
    assert min(build_network(default(plan(KINDS[name])).network).divisor) >= 4


def test_labels_are_ordered_by_value_and_the_reference_is_kept_for_affine_only():
    kind = replace(BRAIN, labels=2)
    labels = {"background": 0, "left": 4, "right": 2}
    preprocessing = default(plan(kind, labels=labels)).preprocessing
    assert preprocessing.label_values == (2, 4)
    assert preprocessing.label_names == ("right", "left")
    assert (preprocessing.prealignment, preprocessing.reference_case) == ("affine", "c000")
    within = default(plan(replace(kind, pairing="intra-subject"), labels=labels)).preprocessing
    assert (within.prealignment, within.reference_case) == ("center", None)


def test_without_labels_the_supervised_terms_have_no_weight_and_nothing_is_segmented():
    kind = replace(BRAIN, labels=0)
    labels = {"background": 0, "left": 4, "right": 2}
    plans = plan(kind, labels=labels)
    chosen = default(plans)
    weights = chosen.training.weights
    assert (weights.overlap, weights.segmentation, weights.consistency) == (0, 0, 0)
    assert weights.similarity > 0
    assert chosen.network.num_labels == 1
    assert chosen.preprocessing.label_values == (2, 4)
    assert "no case has labels" in plans.why[plans.default_configuration]["supervision"]


def test_the_same_facts_give_the_same_plans_and_no_cases_are_refused():
    fingerprint = make_fingerprint(KINDS["abdominal CT"])
    dataset = make_dataset(KINDS["abdominal CT"])
    first, second = (plan_experiment(fingerprint, dataset, Target("cuda", 24.0)) for _ in range(2))
    assert first == second
    with pytest.raises(DatasetError, match="no training cases"):
        plan_experiment(replace(fingerprint, cases=()), dataset, CPU)


def test_each_channel_is_normalised_by_its_own_modality():
    plans = plan(KINDS["PET/CT of one person, follow-up"])
    chosen, why = default(plans), plans.why[plans.default_configuration]["normalization"]
    assert [each.scheme for each in chosen.preprocessing.normalization] == ["window", "percentile"]
    assert chosen.network.in_channels == 2
    assert "CT: one window" in why
    assert "PET: no physical scale" in why


def test_mixed_modalities_are_compared_by_mind_without_a_common_window():
    chosen = default(plan(KINDS["abdominal CT and MR"], Target("cuda", 24.0)))
    assert chosen.preprocessing.modality == "mixed"
    assert chosen.preprocessing.normalization[0].scheme == "percentile"
    assert chosen.training.similarity == "mind"
