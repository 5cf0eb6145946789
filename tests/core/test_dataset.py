import json
from pathlib import Path

import pytest

from biasreg.core.dataset import read_dataset
from biasreg.core.dataset_json import DatasetJson, PairNames
from biasreg.core.errors import DatasetError
from biasreg.core.serialization import read_record, write_record

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def test_a_dataset_is_read_with_its_cases_and_labels_in_order(make_dataset):
    dataset = read_dataset(make_dataset(subjects={"a": "P1"}, modalities={"b": "CT"}))
    assert dataset.full_name == "Dataset700_Tiny"
    assert dataset.label_names == ("left", "right")
    assert dataset.label_values == (1, 3)
    assert dataset.num_channels == 1
    first, second, _ = dataset.cases()
    assert (first.identifier, first.subject, first.modality) == ("a", "P1", "MRI0")
    assert (second.identifier, second.subject, second.modality) == ("b", "b", "CT")
    assert first.images == (dataset.folder / "imagesTr" / "a_0000.nii.gz",)
    assert first.labels == dataset.folder / "labelsTr" / "a.nii.gz"
    assert (first.mask, first.landmarks) == (None, None)
    assert [case.identifier for case in dataset.cases("Ts")] == ["t", "u"]


def test_optional_files_are_found_by_case(make_dataset):
    folder = make_dataset()
    (folder / "labelsTr" / "b.nii.gz").unlink()
    for name in ("masksTr/a.nii.gz", "landmarksTr/a.csv"):
        (folder / name).parent.mkdir()
        (folder / name).touch()
    first, second, _ = read_dataset(folder).cases()
    assert first.mask == folder / "masksTr" / "a.nii.gz"
    assert first.landmarks == folder / "landmarksTr" / "a.csv"
    assert second.labels is None


def test_channels_come_in_order(make_dataset):
    dataset = read_dataset(make_dataset(channels=2))
    assert [path.name for path in dataset.cases()[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]


@pytest.mark.parametrize("name", ["pt_0007", "pt_001", "x"])
def test_the_channel_suffix_may_be_left_out_for_one_channel(name, make_dataset):
    folder = make_dataset(train=("a",))
    (folder / "imagesTr" / "a_0000.nii.gz").rename(folder / "imagesTr" / f"{name}.nii.gz")
    (case,) = read_dataset(folder).cases()
    assert case.identifier == name


def test_hidden_and_foreign_files_are_ignored(make_dataset):
    folder = make_dataset(train=("a",))
    for name in (".a_0001.nii.gz", ".DS_Store", "readme.txt"):
        (folder / "imagesTr" / name).touch()
    assert len(read_dataset(folder).cases()) == 1


def test_a_dataset_without_test_images_has_no_test_cases(make_dataset):
    assert read_dataset(make_dataset(test=())).cases("Ts") == ()


@pytest.mark.parametrize(
    ("file", "channels", "message"),
    [
        ("a.nii.gz", 1, r"case a: imagesTr/a\.nii\.gz and imagesTr/a_0000\.nii\.gz are the same channel"),
        ("a_0001.nii.gz", 1, r"case a_0001: looks like channel 1 of case a, but dataset\.json names 1 channel"),
        ("d_0000.mha", 1, r"imagesTr/d_0000\.mha ends in \.mha, but dataset\.json says \.nii\.gz"),
        ("a_0002.nii.gz", 2, r"case a: imagesTr/a_0002\.nii\.gz is channel 2, but dataset\.json names 2"),
        ("d_0001.nii.gz", 2, r"case d: imagesTr/d_0000\.nii\.gz is missing, but dataset\.json names 2 channels"),
        ("d_0000.dcm", 1, r"imagesTr/d_0000\.dcm ends in \.dcm, but dataset\.json says \.nii\.gz; convert"),
        ("d.mgz", 1, r"imagesTr/d\.mgz ends in \.mgz"),
        ("d.nii.gz", 2, r"imagesTr/d\.nii\.gz has no channel suffix, but dataset\.json names 2 channels"),
    ],
)
def test_misnamed_image_files_are_refused_by_name(file, channels, message, make_dataset):
    folder = make_dataset(channels=channels)
    (folder / "imagesTr" / file).touch()
    with pytest.raises(DatasetError, match=message):
        read_dataset(folder).cases()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 3}, r"dataset\.json: epochs: unknown field"),
        ({"labels": None}, r"dataset\.json: labels: this field is missing"),
        ({"labels": {"left": 1}}, '"background" must be 0, got nothing'),
        ({"labels": {"background": 1}}, '"background" must be 0, got 1'),
        ({"labels": {"background": 0, "a": 2, "b": 2}}, "a and b have the same value 2"),
        ({"labels": {"background": 0, "a": -2}}, "labels.a: values must not be negative, got -2"),
        ({"labels": {"background": 0, "a": "1"}}, 'labels.a: expected a whole number, got "1"'),
        ({"file_ending": ".dcm"}, r"file_ending: '\.dcm' is not known; use one of \.nii\.gz"),
        ({"channel_names": {"1": "CT"}}, r'channel_names: keys must be "0", "1", … without gaps, got \[\'1\'\]'),
        ({"channel_names": {}}, "channel_names"),
        ({"pairing": "random"}, 'pairing: expected one of "inter-subject"'),
        ({"pairing": "listed"}, 'pairing is "listed", but no pair is listed'),
        ({"subjects": {"q": "P"}}, r"subjects\.q: there is no image of such a case"),
        ({"modalities": {"q": "CT"}}, r"modalities\.q: there is no image of such a case"),
        ({"pairs": [{"moving": "a", "fixed": "t"}]}, r"pairs\[0\]: there is no image of case t in imagesTr;"),
        ({"pairs": [{"moving": "a", "fixed": "a"}]}, "same case a"),
        ({"pairs": ["ab"]}, r'pairs\[0\]: expected an object with the fields moving, fixed, initial, got "ab"'),
        ({"pairs": [{"moving": "a"}]}, r"pairs\[0\]\.fixed: this field is missing"),
        ({"test_pairs": [{"moving": "t", "fixed": "q"}]}, r"test_pairs\[0\]: there is no image of case q in imagesTs"),
    ],
)
def test_faults_of_dataset_json_are_refused(changes, message, make_dataset):
    folder = make_dataset(**changes)
    with pytest.raises(DatasetError, match=message) as error:
        read_dataset(folder)
    assert "dataset.json" in str(error.value)


def test_all_faults_of_dataset_json_are_reported_together(make_dataset):
    folder = make_dataset(file_ending=".dcm", labels={"a": 1, "b": 1})
    with pytest.raises(DatasetError) as error:
        read_dataset(folder)
    assert len(str(error.value).splitlines()) == 4


def test_all_wrong_types_of_dataset_json_are_reported_together(make_dataset):
    folder = make_dataset(file_ending=3, channel_names={"0": 1}, labels=[], pairing="x")
    with pytest.raises(DatasetError) as error:
        read_dataset(folder)
    text = str(error.value)
    assert "dataset.json: 4 faults:" in text
    for field in ("file_ending", "channel_names.0", "labels", "pairing"):
        assert f"  - {field}: expected " in text


def test_missing_folders_and_files_are_named(tmp_path, make_dataset):
    with pytest.raises(DatasetError, match="no such dataset folder"):
        read_dataset(tmp_path / "Dataset001_None")
    (tmp_path / "images").mkdir()
    with pytest.raises(DatasetError, match="DatasetNNN_Name"):
        read_dataset(tmp_path / "images")
    (tmp_path / "Dataset001_Empty").mkdir()
    with pytest.raises(DatasetError, match=r"dataset\.json: there is no such file"):
        read_dataset(tmp_path / "Dataset001_Empty")
    with pytest.raises(DatasetError, match="no folder imagesTr"):
        read_dataset(make_dataset(train=(), test=()))


def test_an_empty_training_folder_is_refused(make_dataset):
    folder = make_dataset(train=(), test=())
    (folder / "imagesTr").mkdir()
    with pytest.raises(DatasetError, match=r"holds no image; expected files such as case_0000\.nii\.gz"):
        read_dataset(folder).cases()


def test_dataset_json_survives_the_round_trip(tmp_path):
    record = DatasetJson("N", {"0": "CT"}, {"background": 0}, ".mha", "listed", {"a": "s"}, (PairNames("a", "b"),))
    write_record(tmp_path / "dataset.json", record)
    assert read_record(tmp_path / "dataset.json", DatasetJson) == record
    assert json.loads((tmp_path / "dataset.json").read_text())["pairs"] == [
        {"moving": "a", "fixed": "b", "initial": None}
    ]


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the real datasets of shared/data are not here")
@pytest.mark.parametrize(
    ("name", "train", "test", "labels"),
    [("Dataset501_Hippocampus", 180, 20, 2), ("Dataset502_BrainOASIS", 15, 4, 35), ("Dataset503_HeadNeckCT", 23, 5, 7)],
)
def test_real_datasets_are_read_whole(name, train, test, labels):
    dataset = read_dataset(REAL_DATA / name)
    assert (len(dataset.cases("Tr")), len(dataset.cases("Ts"))) == (train, test)
    assert len(dataset.label_values) == labels
    assert all(case.labels for case in dataset.cases())
