"""Small folders in the layouts of Learn2Reg's datasets: with points, with labels, of two and three images a subject."""

import json
import os

import nibabel
import numpy as np
import pytest

from biasreg.core.dataset import read_dataset
from biasreg.core.dataset_json import PairNames
from biasreg.core.errors import DatasetError, RecordError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import write_image
from biasreg.core.points_io import read_points
from biasreg.sharing.convert_learn2reg import ConvertOptions, convert_learn2reg

GRID = Geometry.from_affine([[-1.5, 0, 0, 40], [0, 0, 2.0, -30], [0, -1.25, 0, 12], [0, 0, 0, 1]], (8, 9, 10))


def images(folder, cases, split="Tr", labels=None):
    for case in cases:
        write_image(folder / f"images{split}" / f"{case}.nii.gz", np.ones(GRID.shape, np.float32), GRID)
        if labels is not None:
            array = np.zeros(GRID.shape, np.uint8)
            array.flat[: len(labels)] = labels
            write_image(folder / f"labels{split}" / f"{case}.nii.gz", array, GRID)


def pair(name, fixed, moving):
    return {"fixed": f"./imagesTr/{name}_{fixed}.nii.gz", "moving": f"./imagesTr/{name}_{moving}.nii.gz"}


def describe(folder, **content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{content['name']}_dataset.json").write_text(json.dumps(content))


@pytest.fixture
def nlst(tmp_path):
    """Two training and one validation subject, keypoints in voxels, masks; the validation pair is listed twice."""
    folder = tmp_path / "NLST"
    cases = [f"NLST_{subject:04d}_{kind:04d}" for subject in (1, 2, 101) for kind in (0, 1)]
    images(folder, cases)
    for case in cases:
        write_image(folder / "masksTr" / f"{case}.nii.gz", np.ones(GRID.shape, np.uint8), GRID)
        (folder / "keypointsTr").mkdir(exist_ok=True)
        shift = int(case[-1])
        (folder / "keypointsTr" / f"{case}.csv").write_text(f"1.5,2,{3 + shift}\n7,8,9\n")
    pairs = [pair("NLST", f"{subject:04d}_0000", f"{subject:04d}_0001") for subject in (1, 2, 101)]
    describe(
        folder,
        name="NLST",
        licence="CC BY",
        modality={"0": "CT", "1": "CT"},
        pairings="paired",
        labels={},
        numTraining=6,
        training=[{"image": f"./imagesTr/{case}.nii.gz"} for case in cases],
        training_paired_images=pairs,
        registration_val=pairs[2:],
        registration_test=[],
    )
    return folder


def test_pairs_held_out_cases_subjects_and_modality(nlst, tmp_path, caplog):
    dataset = read_dataset(convert_learn2reg(nlst, tmp_path / "raw", 601))
    assert dataset.full_name == "Dataset601_NLST"
    assert [case.identifier for case in dataset.cases("Ts")] == ["NLST_0101_0000", "NLST_0101_0001"]
    assert len(dataset.cases("Tr")) == 4
    assert (dataset.json.pairing, dataset.json.licence, dataset.json.channel_names) == ("listed", "CC BY", {"0": "CT"})
    assert dataset.json.pairs == tuple(PairNames(f"NLST_{n:04d}_0001", f"NLST_{n:04d}_0000") for n in (1, 2))
    assert dataset.json.test_pairs == (PairNames("NLST_0101_0001", "NLST_0101_0000"),)
    assert dataset.json.subjects["NLST_0002_0001"] == "0002"
    assert dataset.json.modalities == {}
    assert "1 training pair(s) have a case that is held out" in caplog.text
    assert all(case.mask and case.landmarks for split in ("Tr", "Ts") for case in dataset.cases(split))


def test_points_in_voxels_become_the_points_that_nibabel_gives(nlst, tmp_path):
    folder = convert_learn2reg(nlst, tmp_path / "raw", 601)
    points = read_points(folder / "landmarksTr" / "NLST_0001_0001.csv")
    affine = nibabel.load(nlst / "imagesTr" / "NLST_0001_0001.nii.gz").affine
    np.testing.assert_allclose(
        points.coordinates, nibabel.affines.apply_affine(affine, [[1.5, 2, 4], [7, 8, 9]]), atol=1e-5
    )
    first = (folder / "landmarksTr" / "NLST_0001_0001.csv").read_text().splitlines()[1].split(",")
    np.testing.assert_allclose([float(value) for value in first[:3]], np.array([-1, -1, 1]) * points.coordinates[0])


def test_points_of_one_subject_have_common_names_and_of_two_never(nlst, tmp_path):
    folder = convert_learn2reg(nlst, tmp_path / "raw", 601) / "landmarksTr"
    names = {case: read_points(folder / f"NLST_{case}.csv").names for case in ("0001_0000", "0001_0001", "0002_0000")}
    assert names["0001_0000"] == names["0001_0001"] == ("0001_keypoints_1", "0001_keypoints_2")
    assert not set(names["0001_0000"]) & set(names["0002_0000"])


def test_files_are_linked_or_copied_and_the_source_stays_as_it_is(nlst, tmp_path):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in nlst.rglob("*") if path.is_file()}
    source = nlst / "imagesTr" / "NLST_0001_0000.nii.gz"
    linked = convert_learn2reg(nlst, tmp_path / "raw", 601) / "imagesTr" / "NLST_0001_0000_0000.nii.gz"
    copied = convert_learn2reg(nlst, tmp_path / "raw", 602, ConvertOptions(copy=True)) / "imagesTr" / linked.name
    assert linked.samefile(source)
    assert not copied.samefile(source)
    assert copied.read_bytes() == source.read_bytes()
    assert before == {
        path: (path.stat().st_mtime_ns, path.stat().st_size) for path in nlst.rglob("*") if path.is_file()
    }


def test_without_hard_links_files_are_copied(nlst, tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", refuse)
    assert len(read_dataset(convert_learn2reg(nlst, tmp_path / "raw", 601)).cases("Tr")) == 4


def test_landmarks_come_before_keypoints_and_unequal_files_are_left_out(nlst, tmp_path, caplog):
    (nlst / "landmarksTr").mkdir()
    for kind in (0, 1):
        (nlst / "landmarksTr" / f"NLST_0001_{kind:04d}.csv").write_text("1,1,1\n")
    (nlst / "keypointsTr" / "NLST_0002_0001.csv").write_text("1,1,1\n")
    folder = convert_learn2reg(nlst, tmp_path / "raw", 601)
    assert read_points(folder / "landmarksTr" / "NLST_0001_0000.csv").names == ("0001_landmarks_1",)
    assert not (folder / "landmarksTr" / "NLST_0002_0000.csv").exists()
    assert "keypoints of 2 case(s) are left out, for they have landmarks" in caplog.text
    assert "keypoints of NLST_0002_0000, NLST_0002_0001 differ in number" in caplog.text


@pytest.mark.parametrize(("text", "match"), [("1,2\n", "shape"), ("1,2,x\n", "three numbers"), ("", "shape")])
def test_points_that_cannot_be_read_are_reported_and_the_rest_is_taken(nlst, tmp_path, caplog, text, match):
    (nlst / "keypointsTr" / "NLST_0001_0000.csv").write_text(text)
    folder = convert_learn2reg(nlst, tmp_path / "raw", 601)
    assert match in caplog.text
    assert not (folder / "landmarksTr" / "NLST_0001_0000.csv").exists()
    assert (folder / "landmarksTr" / "NLST_0002_0000.csv").exists()


def test_points_outside_the_image_are_counted(nlst, tmp_path, caplog):
    (nlst / "keypointsTr" / "NLST_0001_0000.csv").write_text("x,y,z\n1,1,1\n8.2,1,1\n")
    folder = convert_learn2reg(nlst, tmp_path / "raw", 601)
    assert "1 of 2 keypoints of NLST_0001_0000 lie outside the image" in caplog.text
    assert len(read_points(folder / "landmarksTr" / "NLST_0001_0000.csv").names) == 2


def test_an_unpaired_dataset_with_labels(tmp_path, caplog):
    """As OASIS and AbdomenCTCT are."""
    folder = tmp_path / "CTCT"
    images(folder, [f"CTCT_{n:04d}_0000" for n in range(1, 6)], labels=[0, 1, 2, 9])
    describe(
        folder,
        name="CTCT",
        pairings="unpaired",
        modality={"0": "CT"},
        labels={"0": {"0": "background", "1": "spleen", "2": "liver", "3": "aorta"}},
        numTraining=4,
        training=[f"./imagesTr/CTCT_{n:04d}_0000.nii.gz" for n in range(1, 5)],
        registration_val=[pair("CTCT", "0003_0000", "0004_0000"), pair("CTCT", "0003_0000", "0099_0000")],
        colour="blue",
    )
    (folder / "atlasTr").mkdir()
    dataset = read_dataset(convert_learn2reg(folder, tmp_path / "raw", 7, ConvertOptions(name="Abdomen CT!")))
    assert dataset.full_name == "Dataset007_AbdomenCT"
    assert dataset.json.labels == {"background": 0, "spleen": 1, "liver": 2, "label_9": 9}
    assert dataset.json.pairing == "inter-subject"
    assert [case.identifier for case in dataset.cases("Ts")] == ["CTCT_0003_0000", "CTCT_0004_0000"]
    for part in (
        "there is no image of CTCT_0099_0000",
        "entries of the file that are not understood: colour",
        "the folder atlasTr has no place",
        "1 image(s) are in no list, CTCT_0005_0000",
        "called label_<value>: 9",
        "labels that no map holds are left out: aorta",
    ):
        assert part in caplog.text


def test_two_modalities_listed_apart_and_partly_paired(tmp_path, caplog):
    """As AbdomenMRCT is: training images by modality, some of them of one subject."""
    folder = tmp_path / "MRCT"
    cases = ["MRCT_0001_0000", "MRCT_0001_0001", "MRCT_0002_0000", "MRCT_0003_0001", "MRCT_0004_0000", "MRCT_0004_0001"]
    images(folder, cases, labels=[0, 1])
    describe(
        folder,
        name="MRCT",
        pairings="hybrid",
        modality={"0": "MR", "1": "CT"},
        labels={"1": "liver"},
        training={
            kind: [{"image": f"./imagesTr/{case}.nii.gz"} for case in cases if case.endswith(kind)] for kind in "01"
        },
        training_paired_images=[pair("MRCT", "0001_0000", "0001_0001")],
        registration_val=[pair("MRCT", "0004_0000", "0004_0001")],
        registration_test=[pair("MRCT", "0001_0000", "0001_0001")],
    )
    dataset = read_dataset(convert_learn2reg(folder, tmp_path / "raw", 8))
    assert dataset.json.channel_names == {"0": "MR"}
    assert dataset.json.modalities["MRCT_0003_0001"] == "CT"
    assert dataset.json.test_pairs == (PairNames("MRCT_0004_0001", "MRCT_0004_0000"),)
    assert "1 pair(s) of registration_test are not among test_pairs" in caplog.text
    options = ConvertOptions(test_pairs="test")
    tested = read_dataset(convert_learn2reg(folder, tmp_path / "raw", 9, options)).json.test_pairs
    assert tested == (PairNames("MRCT_0001_0001", "MRCT_0001_0000"),)


def test_three_images_of_a_subject_and_a_set_of_keypoints_for_each_pair(tmp_path, caplog):
    """As ThoraxCBCT is."""
    folder = tmp_path / "Thorax"
    images(folder, [f"Thorax_0001_{kind:04d}" for kind in range(3)] + [f"Thorax_0011_{kind:04d}" for kind in range(3)])
    for number, kinds in (("01", (0, 1)), ("02", (0, 2))):
        (folder / f"keypoints{number}Tr").mkdir()
        for kind in kinds:
            (folder / f"keypoints{number}Tr" / f"Thorax_0001_{kind:04d}.csv").write_text(f"1,1,{kind}\n")
    describe(
        folder,
        name="Thorax",
        pairings="paired",
        modality={"0": "FBCT", "1": "CBCT", "2": "CBCT"},
        training_paired_images=[pair("Thorax", f"0001_{kind:04d}", "0001_0000") for kind in (1, 2)],
        registration_val=[pair("Thorax", f"0011_{kind:04d}", "0011_0000") for kind in (1, 2)],
    )
    made = convert_learn2reg(folder, tmp_path / "raw", 10)
    points = {kind: read_points(made / "landmarksTr" / f"Thorax_0001_{kind:04d}.csv").names for kind in range(3)}
    assert points[0] == ("0001_keypoints01_1", "0001_keypoints02_1")
    assert (points[1], points[2]) == (points[0][:1], points[0][1:])
    assert "CBCT, FBCT is not taken for CT" in caplog.text
    assert len(read_dataset(made).json.test_pairs) == 2


def test_paired_images_without_a_list_are_drawn_within_subjects(nlst, tmp_path):
    path = nlst / "NLST_dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"training_paired_images": []}))
    assert read_dataset(convert_learn2reg(nlst, tmp_path / "raw", 601)).json.pairing == "intra-subject"


def test_a_taken_number_and_folders_that_are_no_dataset_are_refused(nlst, tmp_path):
    convert_learn2reg(nlst, tmp_path / "raw", 601)
    with pytest.raises(DatasetError, match="the number 601 is taken by Dataset601_NLST"):
        convert_learn2reg(nlst, tmp_path / "raw", 601, ConvertOptions(name="Other"))
    with pytest.raises(DatasetError, match=r"one file <Name>_dataset\.json \(there is none\)"):
        convert_learn2reg(tmp_path, tmp_path / "raw", 602)
    with pytest.raises(DatasetError, match="no name of a dataset"):
        convert_learn2reg(nlst, tmp_path / "raw", 602, ConvertOptions(name="§§"))
    (nlst / "NLST_dataset.json").write_text("{")
    with pytest.raises(RecordError, match="not valid JSON"):
        convert_learn2reg(nlst, tmp_path / "raw", 602)
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["Dataset601_NLST"]


def test_paths_of_the_file_that_lead_elsewhere_are_taken_by_their_last_part(nlst, tmp_path):
    path = nlst / "NLST_dataset.json"
    content = json.loads(path.read_text())
    content["registration_val"] = [{"fixed": "/etc/../NLST_0101_0000.nii.gz", "moving": "..\\NLST_0101_0001.nii.gz"}]
    path.write_text(json.dumps(content))
    dataset = read_dataset(convert_learn2reg(nlst, tmp_path / "raw", 601))
    assert dataset.json.test_pairs == (PairNames("NLST_0101_0001", "NLST_0101_0000"),)
