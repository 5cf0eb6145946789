import re
from pathlib import Path

import pytest

from biasreg.core.errors import DatasetError, ImageError, InputError
from biasreg.core.paths import (
    Roots,
    check_readable,
    check_writable,
    find_dataset,
    resolve_results,
    resolve_roots,
    split_dataset_name,
)


def test_flags_come_before_variables_before_the_common_root_before_the_default(tmp_path):
    (tmp_path / "biasreg_data").mkdir()
    default = tmp_path / "biasreg_data"
    assert resolve_roots({}, folder=tmp_path) == Roots(default / "raw", default / "preprocessed", default / "results")
    environ = {"BIASREG_ROOT": "/common", "biasreg_raw": "/own/raw", "biasreg_preprocessed": "/own/pre"}
    roots = resolve_roots(environ, preprocessed="/flag/pre", folder=tmp_path)
    assert roots == Roots(Path("/own/raw"), Path("/flag/pre"), Path("/common/results"))


def test_empty_variables_count_as_unset(tmp_path):
    with pytest.raises(DatasetError, match="no folder is known for: raw, preprocessed, results"):
        resolve_roots({"BIASREG_ROOT": "", "biasreg_raw": ""}, folder=tmp_path)


def test_missing_roots_are_all_named_with_every_way_to_set_them(tmp_path):
    with pytest.raises(DatasetError) as error:
        resolve_roots({"biasreg_raw": "/raw"}, folder=tmp_path)
    for words in ("preprocessed, results;", "--results", "biasreg_results", "BIASREG_ROOT", str(tmp_path)):
        assert words in str(error.value)


@pytest.mark.parametrize("reference", ["501", "Dataset501_Hippocampus", "Hippocampus", "Dataset501"])
def test_id_and_names_find_the_dataset(reference, tmp_path):
    for name in ("Dataset501_Hippocampus", "Dataset502_Brain", "notes"):
        (tmp_path / name).mkdir()
    assert find_dataset(reference, tmp_path) == tmp_path / "Dataset501_Hippocampus"


def test_an_unknown_dataset_is_refused_with_what_is_there(tmp_path):
    with pytest.raises(DatasetError, match="there is no dataset 9; the folder holds: no dataset"):
        find_dataset("9", tmp_path)
    (tmp_path / "Dataset502_Brain").mkdir()
    with pytest.raises(DatasetError, match="there is no dataset brain; the folder holds: Dataset502_Brain"):
        find_dataset("brain", tmp_path)
    with pytest.raises(DatasetError, match="no such folder"):
        find_dataset("9", tmp_path / "none")


def test_an_ambiguous_dataset_is_refused_and_its_full_name_is_not(tmp_path):
    for name in ("Dataset501_Brain", "Dataset501_Liver", "Dataset502_Brain"):
        (tmp_path / name).mkdir()
    with pytest.raises(DatasetError, match="501 is ambiguous: Dataset501_Brain, Dataset501_Liver"):
        find_dataset("501", tmp_path)
    with pytest.raises(DatasetError, match="Brain is ambiguous: Dataset501_Brain, Dataset502_Brain"):
        find_dataset("Brain", tmp_path)
    assert find_dataset("Dataset502_Brain", tmp_path).name == "Dataset502_Brain"


def test_full_names_are_split_and_other_names_refused():
    assert split_dataset_name("Dataset007_A_b") == (7, "A_b")
    for name in ("Dataset7_A", "dataset007_A", "Dataset007", "Dataset007_"):
        with pytest.raises(DatasetError, match="DatasetNNN_Name"):
            split_dataset_name(name)


def test_prediction_needs_no_other_root_than_the_results(tmp_path):
    assert resolve_results({}, results="/models", folder=tmp_path) == Path("/models")
    assert resolve_results({"biasreg_results": "/models"}, folder=tmp_path) == Path("/models")
    with pytest.raises(DatasetError, match=r"no folder is known for: results; give --results, .* variable biasreg_res"):
        resolve_results({}, folder=tmp_path)


def test_a_file_that_cannot_be_opened_is_refused_for_its_true_reason(tmp_path, forbid_reading):
    (tmp_path / "a").touch()
    check_readable(tmp_path / "a")
    forbid_reading(tmp_path / "a")
    for path, reason in (
        (tmp_path / "a", "permission denied"),
        (tmp_path, "is a folder"),
        (tmp_path / "b", "there is no such file"),
    ):
        with pytest.raises(ImageError, match=f"{re.escape(str(path))}: {reason}"):
            check_readable(path)


def test_a_folder_that_can_be_written_to_is_not_made_by_looking_at_it(tmp_path):
    check_writable(tmp_path, "choose another")
    check_writable(tmp_path / "new" / "deep", "choose another")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "deep/er"])
def test_a_folder_that_cannot_be_written_to_is_refused_with_the_reason(tmp_path, below, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"nothing can be written to .*file.*: .*file is a file · choose another"):
        check_writable(tmp_path / "file" / below, "choose another")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(InputError, match=rf"permission denied in {tmp_path} · choose another"):
        check_writable(tmp_path / below, "choose another")
