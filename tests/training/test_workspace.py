import json
from dataclasses import replace

import pytest
from filelock import FileLock

from biasreg.core.errors import DatasetError, InputError, PlansError
from biasreg.core.serialization import write_record
from biasreg.planning.fallback import fallbacks
from biasreg.training.model_folder import LOCK_FILE, agreed_configuration, publish
from biasreg.training.workspace import open_workspace, read_fold, read_fold_data


def test_a_fold_is_read_with_its_held_out_pairs(write_dataset):
    workspace = open_workspace(write_dataset(cases=6), "901", "tiny", None)
    data = read_fold_data(workspace, 0)
    assert data.fold.validation == ("case0", "case1")
    assert data.held_out == "both"
    assert set(data.validation) == {("case0", "case1"), ("case1", "case0")}
    assert set(data.sampler.cases) == {"case2", "case3", "case4", "case5"}


def test_a_single_held_out_case_is_paired_with_training_cases(write_dataset):
    data = read_fold_data(open_workspace(write_dataset(cases=4), "901", "tiny", None), 0)
    assert data.held_out == "fixed only"
    assert {fixed for _, fixed in data.validation} == {"case0"}
    assert {moving for moving, _ in data.validation} <= {"case1", "case2", "case3"}


def test_fold_all_trains_on_everything_and_holds_out_nothing(write_dataset):
    data = read_fold_data(open_workspace(write_dataset(cases=6), "Blobs", "tiny", "main"), "all")
    assert data.fold.train == tuple(f"case{index}" for index in range(6))
    assert data.held_out == "none"
    assert len(data.validation) == 2


def test_listed_pairs_come_from_the_dataset(write_dataset):
    workspace = open_workspace(write_dataset(cases=6, pairing="listed"), "901", "tiny", None)
    data = read_fold_data(workspace, 0)
    assert data.sampler.cases == ("case2", "case3")
    assert data.held_out == "none"


def test_missing_preprocessed_data_name_the_command(write_dataset):
    roots = write_dataset()
    with pytest.raises(DatasetError, match="run `biasreg_plan_and_preprocess -d 902 -p tiny`"):
        open_workspace(roots, "902", "tiny", None)
    with pytest.raises(PlansError, match=r"no plans 'other'.*biasreg_plan_and_preprocess -d 901"):
        open_workspace(roots, "901", "other", None)
    with pytest.raises(PlansError, match=r"no configuration 'huge'.*there is: main"):
        open_workspace(roots, "901", "tiny", "huge")
    with pytest.raises(InputError, match=r"no fold 7.*folds 0 to 1"):
        read_fold(open_workspace(roots, "901", "tiny", None), 7)


def test_a_fold_with_a_cut_array_names_the_file_and_the_command_before_training(write_dataset):
    workspace = open_workspace(write_dataset(), "901", "tiny", None)
    path = workspace.cases_folder / "case3_mask.npy"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(PlansError, match=r"case3_mask\.npy · run `biasreg_preprocess -d 901 -p tiny`$"):
        read_fold_data(workspace, 0)


def test_commands_in_messages_name_plans_and_configuration(write_dataset, configuration):
    roots = write_dataset()
    with pytest.raises(DatasetError, match="run `biasreg_plan_and_preprocess -d 902 -p tiny`"):
        open_workspace(roots, "902", "tiny", None)
    workspace = open_workspace(roots, "901", "tiny", None)
    (workspace.dataset_folder / "splits_final.json").unlink()
    with pytest.raises(PlansError, match=r"no folds .* run `biasreg_plan_experiment -d 901 -p tiny`"):
        read_fold(workspace, 0)
    plans = replace(workspace.plans, configurations={"main": configuration, "mine": configuration})
    write_record(workspace.dataset_folder / "tiny.json", plans)
    remedy = "run `biasreg_preprocess -d 901 -p tiny -c mine`"
    with pytest.raises(PlansError, match=rf"no preprocessed cases · .*tiny_mine · {remedy}"):
        open_workspace(roots, "901", "tiny", "mine")


def test_cases_of_other_plans_are_refused(write_dataset, configuration):
    roots = write_dataset()
    workspace = open_workspace(roots, "901", "tiny", None)
    changed = replace(configuration.preprocessing, spacing=(1.0, 1.0, 1.0))
    plans = replace(workspace.plans, configurations={"main": replace(configuration, preprocessing=changed)})
    write_record(workspace.dataset_folder / "tiny.json", plans)
    with pytest.raises(PlansError, match=r"made with other plans, .* run `biasreg_preprocess -d 901 -p tiny`"):
        open_workspace(roots, "901", "tiny", None)


def test_plans_of_another_version_ask_to_plan_again(write_dataset):
    roots = write_dataset()
    path = roots.preprocessed / "Dataset901_Blobs" / "tiny.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    with pytest.raises(PlansError, match=r"schema version 99.* run `biasreg_plan_and_preprocess -d 901 -p tiny`"):
        open_workspace(roots, "901", "tiny", None)


def test_a_case_that_is_not_preprocessed_is_named(write_dataset):
    workspace = open_workspace(write_dataset(), "901", "tiny", None)
    (workspace.cases_folder / "case3.json").unlink()
    with pytest.raises(PlansError, match="case3"):
        read_fold_data(workspace, 0)


def aligned_to_a_reference(workspace, prealignment):
    """Make plans, also on disk, that align cases to a reference."""
    preprocessing = replace(workspace.configuration.preprocessing, prealignment=prealignment, reference_case="case0")
    aligned = replace(workspace.configuration, preprocessing=preprocessing)
    plans = replace(workspace.plans, configurations={workspace.configuration_name: aligned})
    write_record(workspace.dataset_folder / "tiny.json", plans)
    return replace(workspace, plans=plans)


def test_the_model_folder_gets_plans_dataset_and_reference(write_dataset):
    workspace = aligned_to_a_reference(open_workspace(write_dataset(), "901", "tiny", None), "affine_focus")
    (workspace.cases_folder / "reference.nii.gz").write_bytes(b"reference")
    (workspace.cases_folder / "reference_focus.nii.gz").write_bytes(b"focus")
    publish(workspace, 0)
    folder = workspace.model_folder
    assert folder.parts[-2:] == ("Dataset901_Blobs", "tiny__main")
    assert (folder / "plans.json").read_text() == (workspace.dataset_folder / "tiny.json").read_text()
    assert (folder / "dataset.json").is_file()
    assert (folder / "reference.nii.gz").read_bytes() == b"reference"
    assert (folder / "reference_focus.nii.gz").read_bytes() == b"focus"


def test_folds_of_other_plans_are_not_mixed_into_a_model(write_dataset, configuration):
    workspace = open_workspace(write_dataset(), "901", "tiny", None)
    publish(workspace, 0)
    changed = replace(configuration, training=replace(configuration.training, learning_rate=0.5))
    other = replace(workspace, plans=replace(workspace.plans, configurations={"main": changed}))
    publish(other, 0)  # nothing is trained yet
    (workspace.model_folder / "fold_0").mkdir(exist_ok=True)
    (workspace.model_folder / "fold_0" / "checkpoint_latest.pth").touch()
    publish(other, 0)  # the fold itself is about to be overwritten
    with pytest.raises(PlansError, match="fold_0 of this model are trained with another configuration"):
        publish(workspace, 1)
    (workspace.model_folder / "fold_0").rename(workspace.model_folder / "fold_0_backup")
    publish(workspace, 1)  # a copy of a fold is none


def test_folds_of_a_model_share_what_the_first_had_to_fall_back_to(write_dataset, configuration):
    workspace = open_workspace(write_dataset(), "901", "tiny", None)
    smaller = next(fallbacks(configuration)).configuration
    assert agreed_configuration(workspace, 0) == configuration
    publish(replace(workspace, used=smaller), 0)
    assert agreed_configuration(workspace, 1) == configuration  # nothing is trained yet
    (workspace.model_folder / "fold_0").mkdir(exist_ok=True)
    (workspace.model_folder / "fold_0" / "checkpoint_latest.pth").touch()
    assert agreed_configuration(workspace, 1) == smaller
    assert agreed_configuration(workspace, 0) == configuration  # it is about to be overwritten


def test_a_fold_that_is_being_trained_counts_before_it_has_weights(write_dataset, configuration):
    workspace = open_workspace(write_dataset(), "901", "tiny", None)
    smaller = next(fallbacks(configuration)).configuration
    with FileLock(workspace.fold_folder(0) / LOCK_FILE):
        assert agreed_configuration(workspace, 1) == configuration  # it has not yet found what it trains
        publish(replace(workspace, used=smaller), 0)
        assert agreed_configuration(workspace, 1) == smaller
        with pytest.raises(PlansError, match="fold_0 of this model are trained with another configuration"):
            publish(workspace, 1)
        publish(replace(workspace, used=smaller), 1)
    publish(workspace, 1)  # fold 0 has ended without weights


def test_a_coarser_grid_is_named_only_where_training_had_to_fall_back_to_one(write_dataset, configuration):
    workspace = open_workspace(write_dataset(), "901", "tiny", None)
    assert workspace.coarser_grid is None
    *_, coarsest = fallbacks(configuration)
    regrid = replace(workspace, used=coarsest.configuration).coarser_grid
    assert regrid.source.shape == configuration.preprocessing.patch_size
    assert regrid.target.spacing[0] > regrid.source.spacing[0]


def test_the_reference_image_of_other_folds_is_not_replaced(write_dataset):
    workspace = aligned_to_a_reference(open_workspace(write_dataset(), "901", "tiny", None), "affine")
    reference = workspace.cases_folder / "reference.nii.gz"
    published = workspace.model_folder / "reference.nii.gz"
    reference.write_bytes(b"reference")
    publish(workspace, 0)
    (workspace.model_folder / "fold_0").mkdir(exist_ok=True)
    (workspace.model_folder / "fold_0" / "checkpoint_best.pth").touch()
    publish(workspace, 1)
    reference.write_bytes(b"another")
    with pytest.raises(
        PlansError, match=r"fold_0 of this model are trained with another reference image .*reference\.nii"
    ):
        publish(workspace, 1)
    assert published.read_bytes() == b"reference"
    publish(workspace, 0)  # the fold itself is about to be overwritten
    assert published.read_bytes() == b"another"


def test_a_fold_with_a_subject_on_both_sides_is_refused_by_name(write_dataset):
    workspace = open_workspace(write_dataset(cases=6), "901", "tiny", None)
    path = workspace.cases_folder / "case0.json"
    path.write_text(path.read_text().replace('"subject": "subject0"', '"subject": "subject5"'))
    with pytest.raises(PlansError, match=r"subject5.*splits_final\.json"):
        read_fold_data(workspace, 0)
