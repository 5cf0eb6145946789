import errno
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from biasreg.core.dataset import read_dataset
from biasreg.core.errors import BiasregError, DatasetError, GeometryError, ImageError, InputError, PlansError
from biasreg.core.geometry import apply_affine
from biasreg.core.image_io import read_image, read_labels, write_image
from biasreg.planning.fingerprint import describe_case, extract_fingerprint, source_hash
from biasreg.planning.fingerprint_records import Misalignment, PairFingerprint
from biasreg.planning.plans import ChannelNormalization, PreprocessingPlans
from biasreg.planning.shared_centers import shared_centers
from biasreg.preprocessing import storage
from biasreg.preprocessing.preprocess import (
    canonical_grid,
    canonical_image,
    preprocess_case,
    preprocess_dataset,
)
from biasreg.preprocessing.resampling import field_of_view


def make_plans(prealignment="center", patch_size=(16, 16, 16), reference=None, crop="anatomy"):
    return PreprocessingPlans(
        spacing=(2.5, 2.5, 2.5),
        patch_size=patch_size,
        modality="MRI",
        normalization=(ChannelNormalization("percentile", 0.5, 99.5),),
        prealignment=prealignment,
        crop=crop,
        reference_case=reference,
        label_values=(1, 7),
        label_names=("body", "spot"),
    )


def no_scores(fixed, moving, reference):
    return PairFingerprint(moving.identifier, fixed.identifier, 1.0, 0.0, {"none": Misalignment(0.0)})


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def run(raw_dataset, tmp_path, executor):
    dataset = read_dataset(raw_dataset(unlabelled=(3,)))
    fingerprint = extract_fingerprint(dataset, no_scores, executor)

    def run(plans):
        # As planning again would: the fingerprint is of the raw files as they are.
        cases = {case.identifier: case for case in dataset.cases("Tr")}
        facts = tuple(replace(known, source_hash=source_hash(cases[known.identifier])) for known in fingerprint.cases)
        preprocess_dataset(dataset, replace(fingerprint, cases=facts), plans, tmp_path / "out", executor)
        return tmp_path / "out"

    run.dataset, run.fingerprint = dataset, fingerprint
    return run


@pytest.mark.parametrize("prealignment", ["center", "affine", "affine_focus"])
def test_pre_aligned_cases_lie_on_each_other_and_remember_where_they_come_from(run, prealignment):
    folder = run(make_plans(prealignment, reference="c0" if prealignment != "center" else None))
    labels = [np.array(storage.load_labels(folder, name)) for name in ("c0", "c1", "c2")]
    for other in labels[1:]:
        overlap = 2 * np.sum((labels[0] == 1) & (other == 1)) / (np.sum(labels[0] == 1) + np.sum(other == 1))
        assert overlap > 0.85
    record = storage.read_stored_case(folder, "c1", "")
    center = np.array(record.frame)[:3, 3]
    assert np.linalg.norm(center - [6.0, -4.0, 3.0]) < 2.5
    assert (folder / "reference.nii.gz").is_file() == (prealignment != "center")
    assert (folder / "reference_focus.nii.gz").is_file() == (prealignment == "affine_focus")


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
    assert storage.read_stored_case(folder, "c0", "").foreground_outside > 0.01


def test_a_grid_that_is_cropped_to_labels_is_centred_on_them_and_only_they_must_lie_inside(run, caplog):
    for case in run.dataset.cases("Tr"):
        if case.labels:
            labels = read_labels(case.labels)
            write_image(case.labels, np.where(labels.array == 7, 7, 0).astype(np.uint8), labels.geometry)
    with caplog.at_level(logging.WARNING):
        folder = run(make_plans("affine_focus", (8, 8, 8), "c0", crop="labels"))
    assert "lies outside the grid" not in caplog.text
    for name in ("c0", "c1", "c2"):
        spot = np.argwhere(storage.load_labels(folder, name) == 2)
        np.testing.assert_allclose(spot.mean(axis=0), 3.5, atol=1.0)
    whole = run(make_plans("affine_focus", (8, 8, 8), "c0"))
    apart = np.argwhere(storage.load_labels(whole, "c0") == 2)
    assert not apart.size or abs(apart.mean(axis=0) - 3.5).max() > 1
    with caplog.at_level(logging.WARNING):
        run(make_plans("affine_focus", (2, 2, 2), "c0", crop="labels"))
    assert "% of the labels lies outside the grid" in caplog.text


def test_cases_without_labels_are_marked(run):
    folder = run(make_plans())
    assert not storage.read_stored_case(folder, "c3", "").annotated
    assert storage.read_stored_case(folder, "c0", "").label_presence == (1, 2)


def test_raw_files_other_than_those_of_the_fingerprint_are_refused_before_anything_changes(run, executor):
    folder = run(make_plans())
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    for name in ("c1", "c3"):
        rewrite(run.dataset.folder / "imagesTr" / f"{name}_0000.nii.gz", 2)
    with pytest.raises(PlansError, match=r"\(cases c1, c3\) · .*Dataset700_Blobs · plan again"):
        preprocess_dataset(run.dataset, run.fingerprint, AFFINE, folder, executor, "plan again")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_case_whose_channels_lie_on_different_grids_is_refused(run, tmp_path):
    case = run.dataset.cases("Tr")[0]
    other = replace(case, images=(case.images[0], run.dataset.cases("Tr")[1].images[0]))
    with pytest.raises(GeometryError, match=r"different grids · .*c1_0000\.nii\.gz .* and c0_0000\.nii\.gz"):
        preprocess_case(other, (0.0, 0.0, 0.0), make_plans(), tmp_path)


def test_a_broken_file_stops_with_its_name(run):
    (run.dataset.folder / "imagesTr" / "c1_0000.nii.gz").write_bytes(b"broken")
    with pytest.raises(ImageError, match=r"case c1: .*c1_0000\.nii\.gz"):
        run(make_plans())


def test_within_subjects_the_centre_is_shared_by_the_subject(run):
    assert len(set(shared_centers(run.fingerprint, "inter-subject").values())) == 1
    assert len(set(shared_centers(run.fingerprint, "intra-subject").values())) == 4


@pytest.fixture
def rerun(run):
    """Return a function that runs again and returns the names of the cases that were made anew."""

    def rerun(plans, change=lambda raw: None):
        folder = run(plans)
        before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        change(run.dataset.folder)
        run(plans)
        return {path.stem for path in folder.glob("c?.json") if path.stat().st_mtime_ns != before[path]}

    return rerun


def rewrite(path, factor):
    image = read_image(path)
    write_image(path, image.array * factor, image.geometry)


AFFINE = make_plans("affine", reference="c0")


def test_another_reference_image_makes_all_cases_anew(rerun):
    def change(raw):
        rewrite(raw / "imagesTr" / "c0_0000.nii.gz", 2)

    assert rerun(AFFINE, change) == {"c0", "c1", "c2", "c3"}


def test_other_labels_of_the_reference_concern_that_case_alone(rerun):
    assert rerun(AFFINE, lambda raw: (raw / "labelsTr" / "c0.nii.gz").unlink()) == {"c0"}


def test_other_labels_of_the_reference_concern_all_cases_where_alignment_has_a_focus(rerun):
    def change(raw):
        path = raw / "labelsTr" / "c0.nii.gz"
        labels = read_labels(path)
        write_image(path, np.roll(labels.array, 1, axis=0), labels.geometry)

    assert rerun(make_plans("affine_focus", reference="c0"), change) == {"c0", "c1", "c2", "c3"}


def test_a_reference_that_lost_its_labels_is_refused_before_anything_is_deleted(rerun, run):
    plans = make_plans("affine_focus", reference="c0")

    def change(raw):
        (raw / "labelsTr" / "c0.nii.gz").unlink()

    with pytest.raises(PlansError, match="labels of c0, which shows none now"):
        rerun(plans, change)


@pytest.mark.parametrize("name", ["reference.nii.gz", "reference_focus.nii.gz"])
@pytest.mark.parametrize("content", [b"damaged", None])
def test_a_damaged_or_exchanged_reference_is_made_anew_with_a_notice(run, name, content, caplog):
    plans = make_plans("affine_focus", reference="c0")
    folder = run(plans)
    path = folder / name
    first = read_image(path)
    if content is None:
        write_image(path, np.roll(first.array, 1, axis=0), first.geometry)
    else:
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        run(plans)
    np.testing.assert_array_equal(read_image(path).array, first.array)
    assert f"{path} is damaged" in caplog.text


def test_labels_that_are_taken_away_or_become_a_mask_are_noticed(rerun, run):
    def change(raw):
        (raw / "masksTr").mkdir()
        (raw / "labelsTr" / "c1.nii.gz").rename(raw / "masksTr" / "c1.nii.gz")
        (raw / "labelsTr" / "c2.nii.gz").unlink()

    plans = make_plans()
    assert rerun(plans, change) == {"c1", "c2"}
    folder = run(plans)
    assert not storage.read_stored_case(folder, "c2", "").annotated
    assert not storage.load_labels(folder, "c2").any()
    assert storage.EXCLUDED in storage.load_mask(folder, "c1")
    assert storage.EXCLUDED not in storage.load_mask(folder, "c3")


def test_new_labels_are_noticed(rerun):
    def change(raw):
        labels = read_labels(raw / "labelsTr" / "c1.nii.gz")
        write_image(raw / "labelsTr" / "c3.nii.gz", labels.array, labels.geometry)

    assert rerun(make_plans(), change) == {"c3"}


def test_a_deleted_array_is_made_again(rerun, tmp_path):
    assert rerun(make_plans(), lambda raw: (tmp_path / "out" / "c2.npy").unlink()) == {"c2"}


def test_a_cut_array_is_made_again_with_a_notice(rerun, tmp_path, caplog):
    path = tmp_path / "out" / "c2_seg.npy"

    def change(raw):
        path.write_bytes(path.read_bytes()[:-1])

    assert rerun(make_plans(), change) == {"c2"}
    assert f"case c2 is preprocessed anew, for an array of it is cut off or damaged: {path}" in caplog.messages
    assert storage.load_labels(tmp_path / "out", "c2").any()


def test_a_centre_that_moved_moves_all_cases_that_share_it(run, executor, tmp_path):
    plans = make_plans("none")
    folder = run(plans)
    first = np.array(storage.read_stored_case(folder, "c0", "").frame)
    rewritten = run.fingerprint.cases[0]
    moved = replace(rewritten, foreground_center=tuple(value + 4.0 for value in rewritten.foreground_center))
    fingerprint = replace(run.fingerprint, cases=(moved, *run.fingerprint.cases[1:]))
    preprocess_dataset(run.dataset, fingerprint, plans, folder, executor)
    for name in ("c0", "c1", "c2", "c3"):
        frame = np.array(storage.read_stored_case(folder, name, "").frame)
        np.testing.assert_allclose(frame[:3, 3], first[:3, 3] + 1)


def test_what_a_users_mask_excludes_is_told_from_what_lies_outside(run):
    first = run.dataset.cases("Tr")[0]
    image = read_image(first.images[0])
    allowed = np.zeros(image.array.shape, np.uint8)
    allowed[11:] = 1
    write_image(run.dataset.folder / "masksTr" / "c0.nii.gz", allowed, image.geometry)
    folder = run(make_plans())
    grid = canonical_grid(make_plans())
    mask = np.array(storage.load_mask(folder, "c0"))
    frame = np.array(storage.read_stored_case(folder, "c0", "").frame)
    counts, excluded = (
        apply_affine(np.linalg.inv(image.geometry.affine) @ frame @ grid.affine, np.argwhere(mask == value))[:, 0]
        for value in (storage.INSIDE, storage.EXCLUDED)
    )
    assert counts.min() > 10.4
    assert excluded.max() < 10.6
    np.testing.assert_array_equal(mask != storage.OUTSIDE, field_of_view(image.geometry, grid, frame))
    assert set(np.unique(storage.load_mask(folder, "c2"))) == {storage.OUTSIDE, storage.INSIDE}  # without such a mask


def test_a_landmark_ends_where_the_frame_says(run):
    folder = run(AFFINE)
    grid = canonical_grid(AFFINE)
    for name in ("c0", "c1", "c2"):
        raw = read_labels(run.dataset.folder / "labelsTr" / f"{name}.nii.gz")
        spot = apply_affine(raw.geometry.affine, np.argwhere(raw.array == 7)).mean(axis=0)
        record = storage.read_stored_case(folder, name, "")
        expected = apply_affine(np.linalg.inv(np.array(record.frame) @ grid.affine), spot)
        found = np.argwhere(storage.load_labels(folder, name) == 2).mean(axis=0)
        np.testing.assert_allclose(found, expected, atol=0.4)
        assert record.geometry.is_close(raw.geometry)


def test_the_share_of_anatomy_outside_the_grid_is_counted_in_its_voxels(run):
    case = run.dataset.cases("Tr")[0]
    channels = [read_image(path) for path in case.images]
    center = np.eye(4)
    center[:3, 3] = describe_case(case, (1, 7)).foreground_center
    assert canonical_image(channels, center, make_plans(patch_size=(16, 16, 16))).foreground_outside == 0
    half = center.copy()
    half[0, 3] += 20.0  # the grid now begins at the middle of the blob
    outside = canonical_image(channels, half, make_plans(patch_size=(16, 16, 16))).foreground_outside
    assert outside == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("files", [("a", "a_mask"), ("a", "a_seg"), ("preprocessing", "a")])
def test_cases_whose_files_would_collide_are_refused(files, run, executor, tmp_path):
    images = run.dataset.folder / "imagesTr"
    for number, name in enumerate(files):
        (images / f"c{number}_0000.nii.gz").rename(images / f"{name}_0000.nii.gz")
    with pytest.raises(DatasetError, match="rename the case"):
        preprocess_dataset(run.dataset, run.fingerprint, make_plans(), tmp_path / "out", executor)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_in_it_is_left_alone(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.npy").touch()
    with pytest.raises(PlansError, match="not made here"):
        run(make_plans())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.npy"]


def test_cases_that_cannot_fit_are_refused_before_one_is_made(run, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=20_000))
    with pytest.raises(InputError, match=r"4 case\(s\) to preprocess need .* KiB, but 19\.5 KiB are free"):
        run(make_plans())
    assert not list((tmp_path / "out").glob("c*"))


def test_a_full_disk_ends_the_run_naming_the_case_and_a_later_run_goes_on(run, monkeypatch, tmp_path):
    save, calls = np.save, []

    def run_full(file, array):
        calls.append(array)
        if len(calls) > 4:  # the first case and a part of the second
            raise OSError(errno.ENOSPC, "No space left on device")
        save(file, array)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", run_full)
        with pytest.raises(BiasregError, match=r"case c1: .*No space left on device"):
            run(make_plans())
    assert {path.name for path in (tmp_path / "out").glob("*.json")} == {
        "preprocessing.json",
        "data_ranges.json",
        "c0.json",
    }
    done = (tmp_path / "out" / "c0.json").stat().st_mtime_ns
    assert len(list(run(make_plans()).glob("c?.json"))) == 4
    assert (tmp_path / "out" / "c0.json").stat().st_mtime_ns == done
