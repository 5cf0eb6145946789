from dataclasses import replace

import pytest
from dataset_kinds import KINDS, make_dataset, make_fingerprint

from biasreg.core.errors import PlansError
from biasreg.planning.overrides import apply_changes, keep_user_configurations, lost_changes
from biasreg.planning.planner import Target, plan_experiment

KIND = KINDS["brain MR, OASIS"]


@pytest.fixture(scope="module")
def plans():
    return plan_experiment(make_fingerprint(KIND), make_dataset(KIND), Target("cpu", 16.0))


def test_a_value_is_set_in_all_configurations_or_in_the_one_that_is_named(plans):
    every = apply_changes(plans, ["training.epochs=7"])
    assert {made.training.epochs for made in every.configurations.values()} == {7}
    assert {why["training.epochs"] for why in every.why.values()} == {"set by the user"}
    one = apply_changes(plans, ["3d_lowres.training.epochs=7", "3d_lowres.training.weights.smoothness=0.5"])
    assert one.configurations["3d_lowres"].training.epochs == 7
    assert one.configurations["3d_lowres"].training.weights.smoothness == 0.5
    assert one.configurations["3d_fullres"] == plans.configurations["3d_fullres"]


def test_words_and_lists_are_taken_as_values(plans):
    changed = apply_changes(plans, ["training.similarity=mind", "network.correlation_levels=[1]"])
    made = changed.configurations["3d_lowres"]
    assert (made.training.similarity, made.network.correlation_levels) == ("mind", (1,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.epoch=7", "there is no field training.epoch .* epochs"),
        ("trainin.epochs=7", "there is no field .*preprocessing, network, training"),
        ("training=7", r"'training=7': training"),
        ("training.epochs.more=7", "there is no field"),
        ("training.epochs", "sets nothing"),
        ("training.epochs=many", "epochs"),
        ("training.epochs=0", "epochs is 0, but must be at least 1"),
        ("training.similarity=ssd", "similarity"),
        ("training.similarity_window_voxels=8", "must be odd"),
        ("preprocessing.patch_size=[41, 48, 40]", "set them by -overwrite_target_spacing"),
        ("preprocessing.spacing=[1, 1, 1]", "set them by -overwrite_target_spacing"),
        ("preprocessing.reference_case=null", "reference_case is None, but prealignment is affine"),
        ("preprocessing.crop=labels", "crop 'labels' needs prealignment 'affine_focus'"),
        ("training.learning_rate=-1", "learning_rate is -1"),
        ("network.encoder.feature_size=-48", "feature_size -48 and"),
        ("network.in_channels=2", "1 normalizations for 2 channels"),
        ("network.num_labels=3", "num_labels is 3, but there are 35 labels"),
        ("network.registration_levels=9", "registration_levels is 9"),
    ],
)
def test_what_cannot_be_set_is_refused_by_name(plans, change, message):
    with pytest.raises(PlansError, match=message):
        apply_changes(plans, [change])


def test_values_that_belong_together_are_checked_once_all_are_set(plans):
    deeper = ["network.encoder.depths=[1]", "network.encoder.heads=[3]", "network.encoder.strides=[[2,2,2],[2,2,2]]"]
    deeper += [
        "network.decoder_channels=[8, 16, 16]",
        "network.registration_levels=3",
        "network.correlation_levels=[0]",
    ]
    assert apply_changes(plans, deeper).configurations["3d_lowres"].network.divisor == (4, 4, 4)
    with pytest.raises(PlansError, match="contradicts itself"):
        apply_changes(plans, deeper[:3])


def test_the_memory_of_what_was_set_is_said_anew_and_what_is_lost_is_named(plans):
    more = apply_changes(plans, ["3d_lowres.training.batch_size=3"])
    assert more.why["3d_lowres"]["memory"].startswith("3 pair(s) in a step need ")
    assert more.why["3d_fullres"] == plans.why["3d_fullres"]
    assert lost_changes(plans, more) == ("3d_lowres.training.batch_size",)
    assert lost_changes(more, more) == ()


def test_configurations_of_the_users_own_survive_planning_again(plans):
    own = apply_changes(plans, ["training.epochs=7"]).configurations["3d_lowres"]
    earlier = replace(plans, configurations={**plans.configurations, "mine": own}, default_configuration="mine")
    kept = keep_user_configurations(plans, earlier)
    assert kept.configurations["mine"] == own
    assert kept.default_configuration == "mine"
    assert kept.why["mine"]
    assert keep_user_configurations(plans, plans) == plans
    changed = apply_changes(plans, ["training.epochs=9"])
    assert keep_user_configurations(plans, changed) == plans  # planned ones are made anew


def test_a_users_configuration_of_other_labels_is_refused(plans):
    own = plans.configurations["3d_lowres"]
    other = replace(own, preprocessing=replace(own.preprocessing, label_values=tuple(range(2, 37))))
    with pytest.raises(PlansError, match="mine was made for other labels"):
        keep_user_configurations(plans, replace(plans, configurations={"mine": other}))


@pytest.mark.parametrize("name", ["a/../../evil", "two words", "", "../x"])
def test_names_of_configurations_that_cannot_name_folders_are_refused(plans, name):
    own = {**plans.configurations, name: plans.configurations["3d_lowres"]}
    with pytest.raises(PlansError, match="its name names a folder"):
        keep_user_configurations(plans, replace(plans, configurations=own))
