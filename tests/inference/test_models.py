from dataclasses import replace

import pytest

from biasreg.core.errors import ModelNotFoundError, PlansError, RecordError
from biasreg.core.serialization import read_json, write_json
from biasreg.inference.models import ModelRequest, find_model, training_notices
from biasreg.network.checkpoint import load_checkpoint, save_checkpoint

ANY = ModelRequest()
BOTH = ("checkpoint_best.pth", "checkpoint_latest.pth")


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


def test_without_any_model_the_command_to_train_one_is_named(results):
    missing = r"no trained model: there is no folder .*results · .*`biasreg_train DATASET 0`, or .* with --results"
    with pytest.raises(ModelNotFoundError, match=missing):
        find_model(results, ANY)
    results.mkdir()
    with pytest.raises(ModelNotFoundError, match=r"no trained model · .*none is trained.*`biasreg_train DATASET 0`"):
        find_model(results, ANY)


def test_the_only_model_needs_no_request(results, write_model, configuration):
    folder = write_model()
    model = find_model(results, ANY)
    assert model.folder == folder
    assert model.configuration == configuration
    assert model.checkpoints == (folder / "fold_0" / "checkpoint_best.pth",)
    assert model.name == "Dataset901_Blobs/tiny__main (fold_0)"


def test_a_folder_without_checkpoint_is_no_trained_model(results, write_model):
    folder = write_model()
    write_model(dataset="Dataset902_Planned", folds=())
    (results / "notes.txt").touch()
    assert find_model(results, ANY).folder == folder


def test_of_several_models_none_is_chosen_silently(results, write_model):
    write_model()
    write_model(plans_name="other")
    with pytest.raises(ModelNotFoundError) as error:
        find_model(results, ANY)
    assert "there are 2 trained models · " in str(error.value)
    assert "\n  Dataset901_Blobs/other__main\n  Dataset901_Blobs/tiny__main" in str(error.value)


@pytest.mark.parametrize("dataset", ["902", "Dataset902_Other", "Other"])
def test_a_dataset_goes_by_id_and_by_name(results, write_model, dataset):
    write_model()
    folder = write_model(dataset="Dataset902_Other")
    assert find_model(results, ModelRequest(dataset=dataset)).folder == folder


def test_plans_and_configuration_narrow_the_choice(results, write_model):
    write_model()
    other = write_model(plans_name="my__plans")
    low = write_model(plans_name="my__plans", name="low")
    assert find_model(results, ModelRequest(plans_name="my__plans", configuration="main")).folder == other
    assert find_model(results, ModelRequest(configuration="low")).folder == low
    with pytest.raises(ModelNotFoundError, match="there are 2 trained models of dataset 901, plans my__plans"):
        find_model(results, ModelRequest("901", "my__plans"))


def test_an_unknown_dataset_or_configuration_is_told_what_is_trained(results, write_model):
    write_model()
    with pytest.raises(ModelNotFoundError, match=r"no dataset 77; .*Dataset901_Blobs.*`biasreg_train 77 0`"):
        find_model(results, ModelRequest(dataset="77"))
    with pytest.raises(ModelNotFoundError, match=r"of configuration low .*trained are: Dataset901_Blobs/tiny__main"):
        find_model(results, ModelRequest(configuration="low"))


@pytest.mark.parametrize("dataset", ["901", "77"])
def test_the_command_to_train_names_plans_and_configuration_too(dataset, results, write_model):
    write_model()
    with pytest.raises(ModelNotFoundError, match=f"`biasreg_train {dataset} 0 -p mine -cfg low`"):
        find_model(results, ModelRequest(dataset, "mine", "low"))


def test_all_numbered_folds_are_used(results, write_model):
    write_model(folds=("0", "2", "all"))
    names = [path.parent.name for path in find_model(results, ANY).checkpoints]
    assert names == ["fold_0", "fold_2"]


def test_a_copy_of_a_fold_is_no_fold(results, write_model):
    folder = write_model(folds=("0", "1"))
    (folder / "fold_1").rename(folder / "fold_0_backup")
    assert [path.parent.name for path in find_model(results, ANY).checkpoints] == ["fold_0"]


def test_fold_all_is_used_where_there_is_no_other(results, write_model):
    write_model(folds=("all",))
    assert find_model(results, ANY).name.endswith("(fold_all)")


def test_folds_can_be_chosen_and_count_once(results, write_model):
    folder = write_model(folds=("0", "1", "all"))
    model = find_model(results, ModelRequest(folds=("1", "all", "1")))
    assert [path.parent for path in model.checkpoints] == [folder / "fold_1", folder / "fold_all"]
    with pytest.raises(ModelNotFoundError, match=r"fold 3, 4 is not trained.*trained: 0, 1, all"):
        find_model(results, ModelRequest(folds=("0", "3", "4")))


def test_the_best_checkpoint_is_taken_and_else_the_latest(results, write_model):
    folder = write_model(files=BOTH)
    assert find_model(results, ANY).checkpoints[0].name == "checkpoint_best.pth"
    (folder / "fold_0" / "checkpoint_best.pth").unlink()
    assert find_model(results, ANY).checkpoints[0].name == "checkpoint_latest.pth"


def test_plans_of_another_version_are_refused(results, write_model):
    path = write_model() / "plans.json"
    write_json(path, read_json(path) | {"schema_version": 0})
    with pytest.raises(PlansError, match=r"schema version 0, this biasreg reads version \d+ .*plans\.json"):
        find_model(results, ANY)


def test_damaged_plans_are_named(results, write_model):
    path = write_model() / "plans.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(RecordError, match=r"plans\.json: not valid JSON"):
        find_model(results, ANY)


def test_a_renamed_model_folder_is_refused(results, write_model):
    folder = write_model()
    folder.rename(folder.with_name("tiny__high"))
    with pytest.raises(PlansError, match="no configuration 'high', only main"):
        find_model(results, ANY)


def set_progress(path, epochs, *, best, planned=5):
    checkpoint = load_checkpoint(path)
    run = replace(checkpoint.identity.run, epochs=planned)
    progress = {"history": [{"epoch": number + 1} for number in range(epochs)], "best": best}
    save_checkpoint(path, replace(checkpoint, identity=replace(checkpoint.identity, run=run), progress=progress))


def test_a_fold_whose_training_was_not_finished_is_named_with_its_epochs(results, write_model):
    folder = write_model(folds=("0", "1"), files=BOTH)
    for fold, epochs in (("fold_0", 5), ("fold_1", 3)):
        set_progress(folder / fold / BOTH[0], 2, best={"epoch": 2})
        set_progress(folder / fold / BOTH[1], epochs, best={"epoch": 2})
    (notice,) = training_notices(find_model(results, ANY))
    assert notice.startswith("fold_1: its training has come to 3 of 5 epochs only · ")


def test_a_fold_that_was_never_validated_is_named(results, write_model):
    folder = write_model(files=BOTH)
    set_progress(folder / "fold_0" / BOTH[0], 4, best=None)
    set_progress(folder / "fold_0" / BOTH[1], 4, best=None)
    (notice,) = training_notices(find_model(results, ANY))
    assert "has come to 4 of 5 epochs only, and its weights, after 4 epoch(s), were never validated" in notice


def test_a_best_checkpoint_that_came_alone_is_not_taken_for_an_aborted_training(results, write_model):
    folder = write_model()
    set_progress(folder / "fold_0" / BOTH[0], 2, best={"epoch": 2})
    assert training_notices(find_model(results, ANY)) == ()
