import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biasreg.core.dataset import read_dataset
from biasreg.core.errors import DatasetError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import write_image
from biasreg.core.pairs import read_pairs
from biasreg.core.pseudo_labels import LabelRecord, PseudoLabelRecord, SegmenterRecord, input_hashes, stale_faults
from biasreg.core.serialization import from_json, to_json, write_record
from biasreg.core.verification import verify_dataset

GRID = Geometry.centered((6, 5, 4), (2.0, 2.0, 2.0))
RAMP = np.arange(120, dtype=np.float32).reshape(GRID.shape)


def label_record(**changes) -> LabelRecord:
    values = {"classes": ("liver",), "origin": "pseudo", "reason": None, "voxels": 30, "volume_mm3": 240.0}
    values |= {"pieces": 1, "main_share": 1.0, "border_share": 0.0, "covered_share": 0.0, "manual_dice": None}
    return LabelRecord(**({"name": "liver", "value": 2} | values | changes))


def record_of(case, **changes) -> PseudoLabelRecord:
    record = PseudoLabelRecord(
        schema_version=1,
        case=case.identifier,
        written="2026-01-01T00:00:00+00:00",
        segmenter=SegmenterRecord("TotalSegmentator", "2.18.0", "total", {"fast": "false"}),
        weights={},
        device="cpu",
        versions={},
        seconds=1.0,
        inputs=input_hashes(case),
        map_hash="0",
        labels=(label_record(),),
        notices=(),
    )
    return replace(record, **changes)


@pytest.fixture
def dataset(tmp_path):
    """Two training cases, `a` with a manual map of label 1, and a held-out one, all with pseudo-labels of label 2."""
    folder = tmp_path / "Dataset700_Pseudo"
    for place, name in (("imagesTr", "a"), ("imagesTr", "b"), ("imagesTr", "c"), ("imagesTs", "d")):
        write_image(folder / place / f"{name}.nii.gz", RAMP + ord(name), GRID)
        write_image(folder / "pseudo_labelsTr" / f"{name}.nii.gz", (RAMP > 90).astype(np.uint8) * 2, GRID)
    write_image(folder / "labelsTr" / "a.nii.gz", (RAMP < 30).astype(np.uint8), GRID)
    content = {"name": "Pseudo", "channel_names": {"0": "CT"}, "labels": {"background": 0, "bone": 1, "liver": 2}}
    content |= {"file_ending": ".nii.gz", "pairing": "inter-subject", "test_pairs": [{"moving": "a", "fixed": "d"}]}
    (folder / "dataset.json").write_text(json.dumps(content))
    found = read_dataset(folder)
    for case in found.cases("Tr")[:2]:  # c is of a run that was killed before its record
        write_record(folder / "pseudo_labelsTr" / f"{case.identifier}.json", record_of(case))
    write_record(folder / "pseudo_labelsTr" / "d.json", record_of(found.cases("Ts")[0]))
    return read_dataset(folder)


def test_complete_pseudo_labels_take_the_place_of_manual_ones_in_training_cases_alone(dataset):
    a, b, c = dataset.cases("Tr")
    (d,) = dataset.cases("Ts")
    pseudo, manual = dataset.folder / "pseudo_labelsTr", dataset.folder / "labelsTr" / "a.nii.gz"
    assert (a.labels, a.manual_labels, a.pseudo.record) == (pseudo / "a.nii.gz", manual, pseudo / "a.json")
    assert (b.labels, b.manual_labels) == (pseudo / "b.nii.gz", None)
    assert (c.labels, c.pseudo) == (None, None)
    assert (d.labels, d.pseudo) == (None, None)


def test_a_case_without_pseudo_labels_has_its_manual_ones(dataset):
    for name in "ab":
        (dataset.folder / "pseudo_labelsTr" / f"{name}.json").unlink()
    a, b, _ = dataset.cases("Tr")
    assert a.labels == a.manual_labels == dataset.folder / "labelsTr" / "a.nii.gz"
    assert b.labels is b.manual_labels is None


def test_pairs_are_evaluated_on_manual_labels_alone(dataset):
    (pair,) = read_pairs(dataset.folder).pairs
    assert pair.moving_seg == dataset.folder / "labelsTr" / "a.nii.gz"


def test_verification_passes_pseudo_labels_that_fit(dataset):
    verify_dataset(dataset)
    assert all(stale_faults(case, dataset.json.labels) == [] for case in dataset.cases("Tr"))


@pytest.mark.parametrize("changed", ["imagesTr/a.nii.gz", "labelsTr/a.nii.gz"])
def test_pseudo_labels_of_other_files_are_a_fault_that_names_the_command(dataset, changed):
    write_image(dataset.folder / changed, (RAMP < 20).astype(np.uint8), GRID)
    with pytest.raises(DatasetError) as error:
        verify_dataset(dataset)
    text = str(error.value)
    assert (
        f"case a: {dataset.folder / changed} has changed since {dataset.folder / 'pseudo_labelsTr' / 'a.nii.gz'}"
        in text
    )
    assert (
        "run `biasreg_pseudo_label -d Dataset700_Pseudo` with the options that they were made with (see a.json)" in text
    )


def test_a_manual_map_that_came_or_went_is_a_fault(dataset):
    (dataset.folder / "labelsTr" / "a.nii.gz").rename(dataset.folder / "labelsTr" / "b.nii.gz")
    a, b, _ = dataset.cases("Tr")
    assert "labelsTr (the map is no longer there) has changed" in stale_faults(a, dataset.json.labels)[0]
    assert "labelsTr/b.nii.gz has changed" in stale_faults(b, dataset.json.labels)[0]


def test_another_value_of_a_label_is_a_fault(dataset):
    (fault,) = stale_faults(dataset.cases("Tr")[0], {"bone": 2, "liver": 1})
    assert "the value of 'liver' in dataset.json (2 before, 1 now) has changed" in fault


def test_a_damaged_record_is_a_fault(dataset):
    (dataset.folder / "pseudo_labelsTr" / "b.json").write_text("{}")
    (fault,) = stale_faults(dataset.cases("Tr")[1], dataset.json.labels)
    assert "b.json" in fault
    assert "or delete" in fault


numbers = st.floats(allow_nan=False, allow_infinity=False)
labels = st.builds(label_record, name=st.text(), reason=st.none() | st.text(), main_share=numbers, manual_dice=numbers)


@given(st.lists(labels, max_size=2), st.dictionaries(st.text(), st.text(), max_size=2), st.none() | st.text())
def test_records_survive_the_way_through_json(found, inputs, map_hash):
    segmenter = SegmenterRecord("tool", "1", "task", inputs)
    record = PseudoLabelRecord(
        1, "a", "now", segmenter, inputs, "cpu", inputs, 1.5, inputs, map_hash, tuple(found), ("notice",)
    )
    assert from_json(PseudoLabelRecord, json.loads(json.dumps(to_json(record)))) == record
