import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from biasreg.core.dataset import read_dataset
from biasreg.core.errors import ImageError
from biasreg.core.image_io import read_image, write_image
from biasreg.planning.fingerprint import extract_fingerprint
from biasreg.planning.plans import ChannelNormalization, PreprocessingPlans
from biasreg.preprocessing import storage
from biasreg.preprocessing.prealign import measure_alignment
from biasreg.preprocessing.preprocess import preprocess_dataset, shared_centers


def make_plans(prealignment="center", patch_size=(16, 16, 16), reference=None):
    return PreprocessingPlans(
        spacing=(2.5, 2.5, 2.5),
        patch_size=patch_size,
        modality="MRI",
        normalization=(ChannelNormalization("percentile", 0.5, 99.5),),
        prealignment=prealignment,
        reference_case=reference,
        label_values=(1, 7),
        label_names=("body", "spot"),
    )


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def run(raw_dataset, tmp_path, executor):
    dataset = read_dataset(raw_dataset(unlabelled=(3,)))
    fingerprint = extract_fingerprint(dataset, measure_alignment, executor)

    def run(plans):
        preprocess_dataset(dataset, fingerprint, plans, tmp_path / "out", executor)
        return tmp_path / "out"

    run.dataset, run.fingerprint = dataset, fingerprint
    return run


@pytest.mark.parametrize("prealignment", ["center", "affine"])
def test_pre_aligned_cases_lie_on_each_other_and_remember_where_they_come_from(run, prealignment):
    folder = run(make_plans(prealignment, reference="c0" if prealignment == "affine" else None))
    labels = [np.array(storage.load_labels(folder, name)) for name in ("c0", "c1", "c2")]
    for other in labels[1:]:
        overlap = 2 * np.sum((labels[0] == 1) & (other == 1)) / (np.sum(labels[0] == 1) + np.sum(other == 1))
        assert overlap > 0.85
    record = storage.read_stored_case(folder, "c1")
    center = np.array(record.frame)[:3, 3]
    assert np.linalg.norm(center - [6.0, -4.0, 3.0]) < 2.5
    assert (folder / storage.REFERENCE_FILE).is_file() == (prealignment == "affine")


def test_without_pre_alignment_shifts_between_the_worlds_remain(run):
    folder = run(make_plans("none"))
    centers = [np.argwhere(storage.load_labels(folder, name) > 0).mean(axis=0) for name in ("c0", "c1")]
    np.testing.assert_allclose((centers[1] - centers[0]) * 2.5, [6.0, -4.0, 3.0], atol=0.8)  # its image cuts the blob


def test_a_second_run_touches_nothing_and_a_missing_or_changed_case_is_made_again(run):
    plans = make_plans()
    folder = run(plans)
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {path: path.stat().st_mtime_ns for path in run(plans).iterdir()} == stamps
    (folder / "c1.json").unlink()  # as a kill before the record was written
    image = read_image(run.dataset.folder / "imagesTr" / "c2_0000.nii.gz")
    write_image(run.dataset.folder / "imagesTr" / "c2_0000.nii.gz", image.array * 2, image.geometry)
    run(plans)
    changed = {path.name for path in folder.iterdir() if path.stat().st_mtime_ns != stamps.get(path)}
    assert {name.split("_")[0].split(".")[0] for name in changed} - {"preprocessing"} == {"c1", "c2"}


def test_other_plans_make_the_folder_anew(run, caplog):
    run(make_plans())
    with caplog.at_level(logging.INFO):
        folder = run(make_plans(patch_size=(24, 16, 16)))
    assert "anew" in caplog.text
    assert storage.load_image(folder, "c0").shape == (1, 24, 16, 16)


def test_anatomy_outside_the_grid_is_reported_by_case(run, caplog):
    with caplog.at_level(logging.WARNING):
        folder = run(make_plans(patch_size=(8, 8, 8)))
    assert "case c0" in caplog.text
    assert storage.read_stored_case(folder, "c0").foreground_outside > 0.01


def test_cases_without_labels_are_marked(run):
    folder = run(make_plans())
    assert not storage.read_stored_case(folder, "c3").annotated
    assert storage.read_stored_case(folder, "c0").label_presence == (1, 2)


def test_a_broken_file_stops_with_its_name(run):
    (run.dataset.folder / "imagesTr" / "c1_0000.nii.gz").write_bytes(b"broken")
    with pytest.raises(ImageError, match="c1_0000"):
        run(make_plans())


def test_within_subjects_the_centre_is_shared_by_the_subject(run):
    assert len(set(shared_centers(run.fingerprint, "inter-subject").values())) == 1
    assert len(set(shared_centers(run.fingerprint, "intra-subject").values())) == 4
