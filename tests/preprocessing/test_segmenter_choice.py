import logging

import pytest

from biasreg.core.dataset import read_dataset
from biasreg.core.errors import DatasetError, InputError
from biasreg.preprocessing import segmenter_choice
from biasreg.preprocessing.segmenter_choice import SegmenterOptions, assign_segmenters, default_task
from biasreg.preprocessing.totalsegmentator import TotalSegmentator


@pytest.mark.parametrize("modality", ["CT", "ct", " Ct "])
def test_a_ct_is_for_the_task_total(modality):
    assert default_task(modality) == "total"


@pytest.mark.parametrize(
    "modality", ["MR", "MRI", "mri", "MR T2w", "T1", "T1w", "t2-weighted", "FLAIR", "MR_DWI", "PD"]
)
def test_an_mr_is_for_the_task_total_mr(modality):
    assert default_task(modality) == "total_mr"


@pytest.mark.parametrize("modality", ["PET", "US", "CBCT", "CT2", "mrna", "X-ray", "T", ""])
def test_other_modalities_do_not_tell_a_task(modality):
    assert default_task(modality) is None


@pytest.fixture
def opened(monkeypatch):
    """Stand for TotalSegmentator's tasks; returns what was opened."""
    calls = []

    def fake(task, device, *, fast, download):
        calls.append((task, device, fast, download))
        return TotalSegmentator(task, {"body": 4, "spot": 5} if task == "total" else {"Body": 1}, "cpu", fast)

    monkeypatch.setattr(segmenter_choice, "open_totalsegmentator", fake)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.18.0")
    return calls


def assign(raw, **options):
    dataset = read_dataset(raw)
    return assign_segmenters(dataset, dataset.cases("Tr"), SegmenterOptions(**options))


def test_cases_of_a_mixed_dataset_get_the_task_of_their_modality(raw_dataset, opened, caplog):
    with caplog.at_level(logging.INFO):
        assigned = assign(raw_dataset(modalities={"c1": "CT"}), fast=True)
    assert opened == [("total_mr", None, True, False), ("total", None, True, False)]
    assert assigned["c1"].matched == {"body": {"body": 4}, "spot": {"spot": 5}}
    assert assigned["c0"].matched == {"body": {"Body": 1}}
    assert assigned["c1"].class_names == ("body", "spot")
    assert "labels that TotalSegmentator total_mr does not make: spot" in caplog.text


def test_a_task_that_is_given_serves_all(raw_dataset, opened):
    assign(raw_dataset(modalities={"c1": "PET"}), task="total", device="cpu", download=True)
    assert opened == [("total", "cpu", False, True)]


def test_unclear_modalities_ask_for_a_task(raw_dataset, opened):
    folder = raw_dataset(modalities={"c1": "PET", "c2": "US"})
    with pytest.raises(InputError, match="modality 'PET' or 'US' · give one with --task"):
        assign(folder)


def test_a_dataset_without_labels_is_refused(raw_dataset, opened):
    folder = raw_dataset(unlabelled=range(4), labels={"background": 0})
    with pytest.raises(DatasetError, match="names no labels but the background"):
        assign(folder)


def test_cases_that_a_folder_has_no_map_of_are_left_out(raw_dataset, tmp_path, caplog):
    folder = raw_dataset()
    maps, label_map = tmp_path / "maps", tmp_path / "map.json"
    maps.mkdir()
    label_map.write_text('{"body": [1, 2], "spot": 3}')
    (maps / "other.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match="none of the cases has a label map"):
        assign(folder, folder=maps, label_map=label_map)
    (maps / "c2.nii.gz").write_bytes((folder / "labelsTr" / "c2.nii.gz").read_bytes())
    assigned = assign(folder, folder=maps, label_map=label_map)
    assert list(assigned) == ["c2"]
    assert assigned["c2"].matched == {"body": {"1": 1, "2": 2}, "spot": {"3": 3}}
    assert "3 cases without a label map there are left as they are: c0.nii.gz, c1.nii.gz, c3.nii.gz" in caplog.text
