from dataclasses import replace

import numpy as np
import pytest

from biasreg.core.dataset_json import DatasetJson
from biasreg.core.errors import DatasetError
from biasreg.core.geometry import Geometry
from biasreg.core.serialization import from_json, to_json
from biasreg.network.build import build_network
from biasreg.planning import grid_rules
from biasreg.planning.decision import Decision
from biasreg.planning.fingerprint import AlignmentScores, CaseFingerprint, ChannelStatistics, Fingerprint
from biasreg.planning.planner import Target, plan_experiment
from biasreg.planning.plans import Plans

LABELS = {"background": 0, "left": 4, "right": 2}


def make_fingerprint(extent, spacing, modality="MRI", count=6, labelled=True):
    channel = ChannelStatistics(-1000.0, (-900.0, -800.0, 0.0, 800.0, 900.0), 1000.0, 0.0, 1.0)
    shape = tuple(int(np.ceil(side / step)) for side, step in zip(extent, spacing, strict=True))
    case = CaseFingerprint(
        identifier="",
        subject="",
        modality=modality,
        geometry=Geometry.centered(shape, spacing),
        foreground_center=(0.0, 0.0, 0.0),
        foreground_extent_mm=extent,
        channels=(channel,),
        label_volumes_mm3={"2": 10.0} if labelled else None,
        source_hash="",
    )
    cases = tuple(replace(case, identifier=f"c{number}", subject=f"c{number}") for number in range(count))
    scores = (AlignmentScores("c1", 0.3, 0.4, 0.6),)
    return Fingerprint(1, "Dataset700_Tiny", "c0", cases, scores)


def make_dataset(**changes):
    return DatasetJson(**{"name": "Tiny", "channel_names": {"0": "MRI"}, "labels": LABELS, "file_ending": ".nii.gz",
                          "pairing": "inter-subject", **changes})  # fmt: skip


DATASETS = {
    "hippocampus": ((40.0, 55.0, 40.0), (1.0, 1.0, 1.0)),
    "brain": ((150.0, 185.0, 150.0), (1.0, 1.0, 1.0)),
    "abdomen": ((380.0, 300.0, 400.0), (0.8, 0.8, 3.0)),
    "cardiac": ((250.0, 250.0, 80.0), (1.5, 1.5, 8.0)),
    "mouse brain": ((11.0, 17.0, 9.0), (0.15, 0.15, 0.15)),
}


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize(
    "target", [Target("cpu", 16.0), Target("cuda", 8.0), Target("cuda", 24.0), Target("cuda", 80.0)]
)
def test_plans_cover_the_field_of_view_in_multiples_of_the_divisor_and_say_why(name, target):
    extent, spacing = DATASETS[name]
    plans = plan_experiment(make_fingerprint(extent, spacing), make_dataset(), target)
    configuration = plans.configurations[plans.default_configuration]
    preprocessing, network = configuration.preprocessing, configuration.network
    assert all(side % network.divisor == 0 for side in preprocessing.patch_size)
    covered = np.array(preprocessing.patch_size) * preprocessing.spacing
    assert (covered >= np.array(extent)).all()
    assert (np.array(preprocessing.spacing) >= np.array(spacing) - 1e-6).all()
    assert (plans.default_configuration == "3d_lowres") == ("coarsened" in plans.why["spacing"])
    assert all(plans.why.values())
    assert from_json(Plans, to_json(plans)) == plans


@pytest.mark.parametrize(("name", "expected"), [("hippocampus", "3d_fullres"), ("brain", "3d_lowres")])
def test_the_configuration_is_named_after_the_spacing_whatever_the_reasons_say(name, expected, monkeypatch):
    choose = grid_rules.choose_spacing
    monkeypatch.setattr(grid_rules, "choose_spacing", lambda *facts: Decision(choose(*facts).value, "not coarsened"))
    plans = plan_experiment(make_fingerprint(*DATASETS[name]), make_dataset(), Target("cuda", 8.0))
    assert plans.default_configuration == expected


@pytest.mark.parametrize("name", ["hippocampus", "cardiac"])
def test_a_network_can_be_built_from_the_plans_of_a_cpu(name):
    plans = plan_experiment(make_fingerprint(*DATASETS[name]), make_dataset(), Target("cpu", 16.0))
    assert build_network(plans.configurations[plans.default_configuration].network).divisor >= 4


def test_labels_are_ordered_by_value_and_the_reference_is_kept_for_affine_only():
    plans = plan_experiment(make_fingerprint(*DATASETS["brain"]), make_dataset(), Target("cpu", 16.0))
    preprocessing = plans.configurations[plans.default_configuration].preprocessing
    assert preprocessing.label_values == (2, 4)
    assert preprocessing.label_names == ("right", "left")
    assert (preprocessing.prealignment, preprocessing.reference_case) == ("affine", "c0")
    within = plan_experiment(
        make_fingerprint(*DATASETS["brain"]), make_dataset(pairing="intra-subject"), Target("cpu", 16.0)
    )
    preprocessing = within.configurations[within.default_configuration].preprocessing
    assert (preprocessing.prealignment, preprocessing.reference_case) == ("center", None)


def test_without_labels_the_supervised_terms_have_no_weight():
    plans = plan_experiment(make_fingerprint(*DATASETS["brain"], labelled=False), make_dataset(), Target("cpu", 16.0))
    weights = plans.configurations[plans.default_configuration].training.weights
    assert (weights.overlap, weights.segmentation, weights.consistency) == (0, 0, 0)
    assert weights.similarity > 0
    assert "no case has labels" in plans.why["supervision"]


def test_the_same_facts_give_the_same_plans_and_no_cases_are_refused():
    fingerprint = make_fingerprint(*DATASETS["abdomen"])
    first, second = (plan_experiment(fingerprint, make_dataset(), Target("cuda", 24.0)) for _ in range(2))
    assert first == second
    with pytest.raises(DatasetError, match="no training cases"):
        plan_experiment(replace(fingerprint, cases=()), make_dataset(), Target("cpu", 16.0))


def test_each_channel_is_normalised_by_its_own_modality():
    fingerprint = make_fingerprint(*DATASETS["brain"], modality="CT")
    cases = tuple(replace(case, channels=case.channels * 2) for case in fingerprint.cases)
    dataset = make_dataset(channel_names={"0": "CT", "1": "PET"})
    plans = plan_experiment(replace(fingerprint, cases=cases), dataset, Target("cpu", 16.0))
    configuration = plans.configurations[plans.default_configuration]
    assert [plan.scheme for plan in configuration.preprocessing.normalization] == ["window", "percentile"]
    assert configuration.network.in_channels == 2
    assert "CT: one window" in plans.why["normalization"]
    assert "PET: no physical scale" in plans.why["normalization"]


def test_labels_that_no_case_shows_get_no_segmentation_head_but_stay_named():
    plans = plan_experiment(make_fingerprint(*DATASETS["brain"], labelled=False), make_dataset(), Target("cpu", 16.0))
    configuration = plans.configurations[plans.default_configuration]
    assert configuration.network.num_labels == 1
    assert configuration.preprocessing.label_values == (2, 4)


def test_mixed_modalities_are_compared_by_mind_without_a_common_window():
    fingerprint = make_fingerprint(*DATASETS["abdomen"], modality="CT")
    cases = (replace(fingerprint.cases[0], modality="MRI"), *fingerprint.cases[1:])
    plans = plan_experiment(replace(fingerprint, cases=cases), make_dataset(), Target("cuda", 24.0))
    configuration = plans.configurations[plans.default_configuration]
    assert configuration.preprocessing.modality == "mixed"
    assert configuration.preprocessing.normalization[0].scheme == "percentile"
    assert configuration.training.similarity == "mind"
