"""Predictions under the names of others: fields that SciPy applies as Learn2Reg does, and BIDS derivatives."""

import json
import zipfile

import nibabel
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from biasreg.core.errors import InputError, PredictionError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import write_image
from biasreg.core.serialization import write_record
from biasreg.core.transform_io import write_displacement
from biasreg.inference.prediction import FieldQuality
from biasreg.inference.record import InputFile, PredictionRecord, Provenance, Settings
from biasreg.inference.trust import Trust
from biasreg.sharing.bids_derivatives import read_name, write_bids
from biasreg.sharing.learn2reg_submission import SubmissionOptions, write_submission
from biasreg.sharing.predictions import check_written, find_registered

GRID = Geometry.from_affine([[-1.5, 0, 0, 40], [0, 0, 2.0, -30], [0, -1.25, 0, 12], [0, 0, 0, 1]], (12, 11, 10))
SHIFT = (2, -1, 3)  # voxels along the array axes


@pytest.fixture
def predict(tmp_path):
    """Give a function that writes a pair into the output folder, displaced by SHIFT voxels."""
    folder = tmp_path / "out"

    def predict(moving, fixed, moving_grid=GRID, pair=None, files=("warped",)):
        pair = pair or f"{moving}_to_{fixed}"
        field = np.broadcast_to(GRID.affine[:3, :3] @ SHIFT, (*GRID.shape, 3)).astype(np.float32)
        write_displacement(folder / f"{pair}_warp.nii.gz", field, GRID)
        write_displacement(folder / f"{pair}_inverse_warp.nii.gz", np.zeros((*moving_grid.shape, 3)), moving_grid)
        for suffix in files:
            write_image(folder / f"{pair}_{suffix}.nii.gz", np.ones(GRID.shape, np.float32), GRID)
        inputs = (InputFile("moving", f"/in/{moving}.nii.gz", "0"), InputFile("fixed", f"C:\\in\\{fixed}.nii.gz", "1"))
        provenance = Provenance("m", {}, "cpu", {"biasreg": "0.1.0"})
        quality = FieldQuality(0.0, 0.1, None)
        record = PredictionRecord(
            pair, "now", provenance, inputs, Settings(), (), "none", {}, quality, Trust("PASS", ()), None, ()
        )
        write_record(folder / f"{pair}.json", record)
        return folder

    return predict


def test_fields_of_levels_are_no_pairs(predict):
    source = predict("A_0001_0000", "A_0000_0000")
    for level in (1, 2):
        write_displacement(
            source / f"A_0001_0000_to_A_0000_0000_level{level}_warp.nii.gz", np.zeros((*GRID.shape, 3)), GRID
        )
    pairs, faults = find_registered(source)
    assert [pair.name for pair in pairs] == ["A_0001_0000_to_A_0000_0000"]
    assert faults == {}


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_learn2regs_rule_warps_by_the_written_field(predict, tmp_path):
    source = predict("NLST_0101_0001_0000", "NLST_0101_0000_0000")  # with the channel that biasreg's datasets have
    assert write_submission(source, tmp_path / "sub") == {}
    assert names(tmp_path / "sub") == ["disp_0101_0101.nii.gz"]
    image = nibabel.load(tmp_path / "sub" / "disp_0101_0101.nii.gz")
    disp = image.get_fdata()
    assert disp.shape == (*GRID.shape, 3)
    assert image.get_data_dtype() == np.float32
    moving = np.random.default_rng(0).random(GRID.shape)
    identity = np.meshgrid(*(np.arange(size) for size in GRID.shape), indexing="ij")
    warped = map_coordinates(moving, identity + disp.transpose(3, 0, 1, 2), order=0)
    np.testing.assert_array_equal(warped[:9, 1:, :6], moving[2:11, :-1, 3:9])


def test_half_precision_rounds_the_numbers(predict, tmp_path):
    source = predict("A_0001_0001", "A_0001_0000")
    write_submission(source, tmp_path / "sub", SubmissionOptions(precision="float16"))
    disp = nibabel.load(tmp_path / "sub" / "disp_0001_0001.nii.gz").get_fdata()
    np.testing.assert_array_equal(disp, disp.astype(np.float16))
    np.testing.assert_allclose(disp[0, 0, 0], SHIFT, atol=1e-3)


def test_names_begin_with_the_fixed_image(predict, tmp_path):
    write_submission(predict("OASIS_0439_0000", "OASIS_0438_0000"), tmp_path / "sub")
    assert names(tmp_path / "sub") == ["disp_0438_0439.nii.gz"]


def test_long_names_are_given_on_demand_and_where_short_ones_collide(predict, tmp_path):
    source = predict("Thorax_0011_0000", "Thorax_0011_0001")
    write_submission(source, tmp_path / "long", SubmissionOptions(long_names=True))
    assert names(tmp_path / "long") == ["disp_0011_0001_0011_0000.nii.gz"]
    predict("Thorax_0011_0000", "Thorax_0011_0002")
    assert write_submission(source, tmp_path / "two") == {}
    assert names(tmp_path / "two") == ["disp_0011_0001_0011_0000.nii.gz", "disp_0011_0002_0011_0000.nii.gz"]


def test_a_zip_holds_the_fields_at_its_top(predict, tmp_path):
    write_submission(predict("A_0001_0001", "A_0001_0000"), tmp_path / "sub", SubmissionOptions(zipped=True))
    with zipfile.ZipFile(tmp_path / "sub" / "submission.zip") as archive:
        assert archive.namelist() == ["disp_0001_0001.nii.gz"]
        assert archive.read("disp_0001_0001.nii.gz") == (tmp_path / "sub" / "disp_0001_0001.nii.gz").read_bytes()


def test_pairs_that_cannot_be_written_are_named_and_the_others_are_written(predict, tmp_path):
    source = predict("A_0001_0001", "A_0001_0000")
    predict("A_0002_0001", "A_0002_0000", moving_grid=Geometry.centered((5, 5, 5), (1, 1, 1)))
    predict("hippocampus", "A_0003_0000")
    predict("A_0004_0001", "A_0004_0000", pair="once")
    predict("A_0004_0001", "A_0004_0000", pair="twice")
    predict("A_0005_0001", "A_0005_0000", pair="foreign")
    (source / "foreign.json").unlink()
    failures = write_submission(source, tmp_path / "sub")
    assert names(tmp_path / "sub") == ["disp_0001_0001.nii.gz"]
    assert set(failures) == {"A_0002_0001_to_A_0002_0000", "hippocampus_to_A_0003_0000", "once", "twice", "foreign"}
    assert "counts the voxels of one grid" in failures["A_0002_0001_to_A_0002_0000"]
    assert "no number of four digits" in failures["hippocampus_to_A_0003_0000"]
    assert "another pair has the same numbers" in failures["once"]
    assert "no record" in failures["foreign"]
    with pytest.raises(PredictionError, match=r"(?s)5 faults.*twice: another pair"):
        check_written(failures)
    check_written({})


@pytest.mark.parametrize("write", [write_submission, write_bids])
def test_folders_that_hold_something_or_nothing_are_refused(predict, tmp_path, write):
    source = predict("A_0001_0001", "A_0001_0000")
    with pytest.raises(InputError, match="the folder is not empty"):
        write(source, source)
    with pytest.raises(InputError, match=r"there is no field \*_warp\.nii\.gz"):
        write(tmp_path / "absent", tmp_path / "sub")


def test_bids_names_of_images_of_one_subject(predict, tmp_path):
    files = ("warped", "warped_seg", "jacobian")
    source = predict("sub-01_ses-1_T1w", "sub-01_ses-2_T1w", pair="a", files=files)
    assert write_bids(source, tmp_path / "bids") == {}
    stem = "sub-01/ses-1/anat/sub-01_ses-1"
    assert names(tmp_path / "bids") == sorted(
        [
            "dataset_description.json",
            f"{stem}_from-ses1T1w_to-ses2T1w_mode-image_xfm.nii.gz",
            f"{stem}_from-ses1T1w_to-ses2T1w_mode-image_xfm.json",
            f"{stem}_from-ses2T1w_to-ses1T1w_mode-image_xfm.nii.gz",
            f"{stem}_from-ses2T1w_to-ses1T1w_mode-image_xfm.json",
            f"{stem}_space-ses2T1w_desc-warped_T1w.nii.gz",
            f"{stem}_space-ses2T1w_desc-warped_dseg.nii.gz",
            f"{stem}_space-ses2T1w_desc-jacobian_T1w.nii.gz",
        ]
    )
    forward = tmp_path / "bids" / f"{stem}_from-ses1T1w_to-ses2T1w_mode-image_xfm.nii.gz"
    assert forward.samefile(source / "a_warp.nii.gz")
    inverse = tmp_path / "bids" / f"{stem}_from-ses2T1w_to-ses1T1w_mode-image_xfm.nii.gz"
    assert inverse.samefile(source / "a_inverse_warp.nii.gz")


def test_the_description_and_the_sidecars_say_what_the_files_are(predict, tmp_path):
    write_bids(predict("sub-01_T1w", "sub-02_T1w"), tmp_path / "bids")
    description = json.loads((tmp_path / "bids" / "dataset_description.json").read_text())
    assert (description["DatasetType"], description["GeneratedBy"][0]["Name"]) == ("derivative", "biasreg")
    (path,) = (tmp_path / "bids").rglob("*_from-T1w_to-sub02T1w_mode-image_xfm.json")
    sidecar = json.loads(path.read_text())
    assert (sidecar["Units"], sidecar["VectorCoordinateSystem"]) == ("mm", "LPS")
    assert "moving image onto the fixed one" in sidecar["Description"]
    assert "/in/" not in path.read_text()


def test_copies_instead_of_links(predict, tmp_path):
    source = predict("sub-01_T1w", "sub-02_T1w", pair="a")
    write_bids(source, tmp_path / "bids", copy=True)
    (path,) = (tmp_path / "bids").rglob("*_from-T1w_to-sub02T1w_mode-image_xfm.nii.gz")
    assert path.read_bytes() == (source / "a_warp.nii.gz").read_bytes()
    assert not path.samefile(source / "a_warp.nii.gz")


def test_images_of_other_names_need_a_suffix(predict, tmp_path):
    source = predict("case_288_0000", "case_265_0000")
    (reason,) = write_bids(source, tmp_path / "bids").values()
    assert "say it with --suffix" in reason
    assert names(tmp_path / "bids") == []
    assert write_bids(source, tmp_path / "bids", suffix="T1w") == {}
    folder = "sub-case288/anat/sub-case288"
    assert f"{folder}_from-T1w_to-subcase265T1w_mode-image_xfm.nii.gz" in names(tmp_path / "bids")


def test_pairs_of_one_name_are_not_mixed(predict, tmp_path):
    source = predict("sub-01_T1w", "sub-02_T1w", pair="a")
    predict("sub-01_T1w", "sub-02_T1w", pair="b")
    predict("sub-03_T1w", "sub-03_T1w", pair="c")
    failures = write_bids(source, tmp_path / "bids")
    assert "another pair has the same name in BIDS" in failures["b"]
    assert "have the same name in BIDS" in failures["c"]
    assert set(failures) == {"b", "c"}


def test_several_channels_keep_their_numbers(predict, tmp_path):
    write_bids(predict("sub-01_T1w_0000", "sub-02_T1w_0000", files=("warped_0000", "warped_0001")), tmp_path / "bids")
    warped = [name.rpartition("/")[2] for name in names(tmp_path / "bids") if "warped" in name]
    assert warped == [f"sub-01_space-sub02T1w_desc-warped000{channel}_T1w.nii.gz" for channel in (0, 1)]


def test_a_name_says_what_it_says():
    assert read_name("sub-01_ses-pre_acq-fast_T1w", None).entities == {"sub": "01", "ses": "pre", "acq": "fast"}
    assert read_name("sub-01_T1w", "CT").suffix == "CT"
    with pytest.raises(PredictionError, match="does not say what kind"):
        read_name("___", "T1w")


def test_where_a_pair_cannot_be_written_there_is_no_archive(predict, tmp_path):
    predict("A_0001_0001", "A_0001_0000")
    source = predict("nameless", "A_0002_0000")
    assert set(write_submission(source, tmp_path / "sub", SubmissionOptions(zipped=True))) == {
        "nameless_to_A_0002_0000"
    }
    assert "submission.zip" not in names(tmp_path / "sub")
