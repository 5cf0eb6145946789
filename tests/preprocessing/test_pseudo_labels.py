import json
import logging
import shutil

import numpy as np
import pytest

from biasreg.core.dataset import read_dataset
from biasreg.core.errors import BiasregError, DatasetError, InputError
from biasreg.core.image_io import read_image, read_labels, write_image
from biasreg.core.serialization import file_hash
from biasreg.core.verification import verify_dataset
from biasreg.preprocessing import label_quality, pseudo_labels
from biasreg.preprocessing.prepare import PrepareOptions, extract_fingerprint, plan_and_preprocess, preprocess
from biasreg.preprocessing.pseudo_labels import PseudoLabelOptions, make_pseudo_labels
from biasreg.preprocessing.segmenter_choice import SegmenterOptions
from biasreg.preprocessing.segmenters import LabelFolder

CLASSES = {"background": 0, "Body": 41, "SPOT": 42}


class Setting:
    """A dataset of blobs whose maps another program has made too; c0 and c1 lack a map, c2 shows the body alone."""

    def __init__(self, roots, folder, maps):
        self.roots, self.folder, self.maps = roots, folder, maps
        self.pseudo = folder / "pseudo_labelsTr"

    def run(self, *, clean=False, keep_others=False, **segmenter):
        options = SegmenterOptions(**({"folder": self.maps} | segmenter))
        return make_pseudo_labels(self.roots, "700", PseudoLabelOptions(options, clean, keep_others))

    def record(self, case):
        return json.loads((self.pseudo / f"{case}.json").read_text())

    def change(self, path, function):
        image = read_labels(path)
        write_image(path, function(image.array).astype(np.uint8), image.geometry)

    def times(self):
        return {path.name: path.stat().st_mtime_ns for path in sorted(self.pseudo.iterdir())}

    def remade(self, before):
        return {name.split(".")[0] for name, time in self.times().items() if before.get(name) != time}


@pytest.fixture
def setting(roots, raw_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(label_quality, "MIN_VOXELS", 8)  # the spot has 14
    folder, maps = raw_dataset(), tmp_path / "maps"
    maps.mkdir()
    (maps / "dataset.json").write_text(json.dumps({"labels": CLASSES}))
    found = Setting(roots, folder, maps)
    for path in (folder / "labelsTr").iterdir():
        shutil.copy(path, maps / path.name)
        found.change(maps / path.name, lambda array: np.select([array == 1, array == 7], [41, 42]))
    for name in ("c0", "c1"):
        (folder / "labelsTr" / f"{name}.nii.gz").unlink()
    found.change(folder / "labelsTr" / "c2.nii.gz", lambda array: array * (array == 1))
    return found


def test_missing_labels_are_made_beside_labels_tr_and_become_the_labels_of_the_cases(setting):
    before = {path: file_hash(path) for path in (setting.folder / "labelsTr").iterdir()}
    records = setting.run()
    assert [record.case for record in records] == ["c0", "c1", "c2", "c3"]
    cases = {case.identifier: case for case in read_dataset(setting.folder).cases("Tr")}
    assert {name: case.labels.parent.name for name, case in cases.items()} == {
        **dict.fromkeys(("c0", "c1", "c2"), "pseudo_labelsTr"),
        "c3": "labelsTr",
    }
    for name in ("c0", "c1", "c2"):
        made, truth = read_labels(cases[name].labels), read_labels(setting.maps / f"{name}.nii.gz")
        assert made.geometry.is_close(truth.geometry)
        np.testing.assert_array_equal(made.array, np.select([truth.array == 41, truth.array == 42], [1, 7]))
    assert {path: file_hash(path) for path in (setting.folder / "labelsTr").iterdir()} == before
    verify_dataset(read_dataset(setting.folder))


def test_records_tell_where_labels_come_from(setting):
    setting.run()
    record = setting.record("c2")
    assert record["segmenter"] == {"name": "label maps", "version": "", "task": str(setting.maps), "settings": {}}
    assert record["inputs"] == {
        "image": file_hash(setting.folder / "imagesTr" / "c2_0000.nii.gz"),
        "manual": file_hash(setting.folder / "labelsTr" / "c2.nii.gz"),
        "source": file_hash(setting.maps / "c2.nii.gz"),
    }
    assert record["map_hash"] == file_hash(setting.pseudo / "c2.nii.gz")
    body, spot = record["labels"]
    assert (body["name"], body["origin"], body["manual_dice"]) == ("body", "manual", 1.0)
    assert (spot["name"], spot["value"], spot["classes"], spot["origin"]) == ("spot", 7, ["SPOT"], "pseudo")
    assert record["seconds"] >= 0


def test_cases_that_are_complete_are_segmented_only_to_compare_and_not_all_of_them(setting, monkeypatch, caplog):
    monkeypatch.setattr(pseudo_labels, "AGREEMENT_CASES", 0)
    assert [record.case for record in setting.run()] == ["c0", "c1", "c2"]
    assert not (setting.pseudo / "c3.json").exists()
    monkeypatch.setattr(pseudo_labels, "AGREEMENT_CASES", 1)
    with caplog.at_level(logging.INFO):
        setting.run()
    assert "segmented only to compare with labels drawn by hand: c3" in caplog.text
    assert "body: added in 2 cases, left out in 0; Dice with 2 drawn by hand: 1.00" in caplog.text
    assert setting.record("c3")["map_hash"] is None
    assert not (setting.pseudo / "c3.nii.gz").exists()


def test_what_fits_is_kept_and_what_is_missing_or_was_made_of_other_files_is_made_anew(setting):
    setting.run()
    before = setting.times()
    setting.run()
    assert setting.times() == before
    (setting.pseudo / "c0.json").unlink()  # as a kill before the record was written
    setting.change(setting.maps / "c1.nii.gz", lambda array: array * (array == 41))
    setting.change(setting.folder / "labelsTr" / "c2.nii.gz", lambda array: np.roll(array, 1, axis=0))
    setting.run()
    assert setting.remade(before) == {"c0", "c1", "c2"}


def test_another_choice_of_classes_makes_all_anew_unless_any_will_do(setting, tmp_path):
    setting.run()
    before = setting.times()
    (tmp_path / "map.json").write_text('{"spot": []}')
    setting.run(label_map=tmp_path / "map.json", keep_others=True)
    assert setting.times() == before
    setting.run(label_map=tmp_path / "map.json")
    assert setting.remade(before) >= {"c0", "c1"}
    assert [label["name"] for label in setting.record("c0")["labels"]] == ["body"]
    assert not (setting.pseudo / "c2.nii.gz").exists()  # its body is drawn by hand, and more was not asked for


def test_clean_makes_all_anew(setting):
    setting.run()
    before = setting.times()
    setting.run(clean=True)
    assert setting.remade(before) == {"c0", "c1", "c2", "c3"}


def test_maps_that_were_corrected_by_hand_are_never_lost_without_being_told(setting):
    setting.run()
    corrected = setting.pseudo / "c0.nii.gz"
    setting.change(corrected, lambda array: array * (array == 1))
    text = file_hash(corrected)
    setting.run()  # nothing else has changed: it stays
    setting.change(setting.maps / "c0.nii.gz", lambda array: np.roll(array, 1, axis=0))
    with pytest.raises(InputError, match=r"changed by hand .* c0\.nii\.gz .* move them to labelsTr, .* give --clean"):
        setting.run()
    assert file_hash(corrected) == text
    setting.run(clean=True)
    assert file_hash(corrected) != text


def test_pseudo_labels_go_when_the_last_label_was_drawn_by_hand(setting, monkeypatch):
    monkeypatch.setattr(pseudo_labels, "AGREEMENT_CASES", 0)
    setting.run()
    shutil.copy(setting.maps / "c1.nii.gz", setting.folder / "labelsTr" / "c1.nii.gz")
    setting.change(setting.folder / "labelsTr" / "c1.nii.gz", lambda a: np.select([a == 41, a == 42], [1, 7]))
    with pytest.raises(DatasetError, match="has changed since"):
        verify_dataset(read_dataset(setting.folder))
    setting.run()
    assert not (setting.pseudo / "c1.nii.gz").exists()
    verify_dataset(read_dataset(setting.folder))


def test_a_label_that_is_not_credible_is_left_out_of_the_case_with_the_reason(setting, caplog):
    setting.change(setting.maps / "c0.nii.gz", lambda array: array * (array == 41))
    setting.change(setting.maps / "c1.nii.gz", np.zeros_like)
    setting.run()
    assert set(np.unique(read_labels(setting.pseudo / "c0.nii.gz").array)) == {0, 1}
    assert setting.record("c0")["labels"][1]["reason"] == "nothing was found"
    assert "case c0: spot is left out: nothing was found" in caplog.text
    assert not (setting.pseudo / "c1.nii.gz").exists()  # a map of background alone would be a fault
    assert read_dataset(setting.folder).cases("Tr")[1].labels is None
    verify_dataset(read_dataset(setting.folder))


def test_a_structure_that_is_called_the_same_but_is_another_one_is_warned_of(setting, caplog):
    setting.change(setting.maps / "c3.nii.gz", lambda array: np.select([array == 0], [41], 0))
    setting.run(roi_subset=("Body",))
    assert "body: the segmenter seems to mean another structure" not in caplog.text
    setting.change(setting.maps / "c2.nii.gz", lambda array: np.select([array == 0], [41], 0))
    caplog.clear()
    setting.run()
    assert "body: the segmenter seems to mean another structure" in caplog.text
    assert setting.record("c2")["labels"][1]["origin"] == "excluded"


def test_all_faults_of_raw_files_are_found_before_the_first_case_is_segmented(setting, monkeypatch):
    for name in ("c0", "c2"):
        image = read_image(setting.folder / "imagesTr" / f"{name}_0000.nii.gz")
        write_image(setting.folder / "imagesTr" / f"{name}_0000.nii.gz", image.array * 0, image.geometry)
    monkeypatch.setattr(LabelFolder, "segment", None)
    with pytest.raises(DatasetError, match=r"(?s)2 faults:.*case c0: .*every voxel.*case c2: "):
        setting.run()


def test_cases_that_are_done_stay_when_one_fails(setting, monkeypatch):
    segment = LabelFolder.segment

    def fail(self, case, image, classes):
        if case.identifier == "c1":
            raise BiasregError("no memory")
        return segment(self, case, image, classes)

    with monkeypatch.context() as patch:
        patch.setattr(LabelFolder, "segment", fail)
        with pytest.raises(BiasregError, match="no memory"):
            setting.run()
    before = setting.times()
    assert set(before) == {"c0.json", "c0.nii.gz"}
    setting.run()
    assert setting.remade(before) == {"c1", "c2", "c3"}


def test_a_raw_folder_that_cannot_be_written_to_is_refused_at_once(setting, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(InputError, match=r"nothing can be written to .*pseudo_labelsTr: .* beside labelsTr"):
        setting.run()


def test_the_steps_after_take_pseudo_labels_say_so_and_notice_changes(setting, caplog):
    setting.run()
    options = PrepareOptions(device="cpu", memory_gib=8.0, num_workers=1)
    with caplog.at_level(logging.INFO):
        plan_and_preprocess(setting.roots, "700", options)
    assert "3 of 4 training cases have pseudo-labels (pseudo_labelsTr), which complete labels drawn by hand in 1" in (
        caplog.text
    )
    fingerprint = extract_fingerprint(setting.roots, "700", options)
    assert all(set(case.label_volumes_mm3) == {"1", "7"} for case in fingerprint.cases)
    setting.change(setting.folder / "labelsTr" / "c2.nii.gz", lambda array: np.roll(array, 1, axis=0))
    with pytest.raises(InputError, match="raw files have changed since they were planned for"):
        preprocess(setting.roots, "700", options)
    with pytest.raises(DatasetError, match="run `biasreg_pseudo_label -d Dataset700_Blobs`"):
        plan_and_preprocess(setting.roots, "700", options)


def test_planning_makes_pseudo_labels_first_where_it_is_asked_to(setting, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "biasreg.preprocessing.prepare.make_pseudo_labels", lambda roots, name, options: asked.append(options)
    )
    options = PrepareOptions(device="cpu", memory_gib=8.0, num_workers=1, pseudo_labels=True)
    plan_and_preprocess(setting.roots, "700", options)
    assert asked == [PseudoLabelOptions(keep_others=True)]
