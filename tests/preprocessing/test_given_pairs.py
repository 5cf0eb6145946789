"""Training cases whose frames follow from a user's own transforms."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK

from biasreg.core.dataset import read_dataset
from biasreg.core.geometry import Geometry, ras_to_lps
from biasreg.core.image_io import read_image, read_labels, write_image
from biasreg.core.serialization import read_json, read_record, write_json
from biasreg.planning.fingerprint import source_hash
from biasreg.planning.plans import ChannelNormalization, PreprocessingPlans
from biasreg.preprocessing.prepare import PrepareOptions, extract_fingerprint, plan_and_preprocess
from biasreg.preprocessing.preprocess import preprocess_dataset
from biasreg.preprocessing.storage import StoredCase, load_image, load_labels

OPTIONS = PrepareOptions("cpu", 8.0, num_workers=1)
SIGNS = ras_to_lps(np.ones(3))


def world(angles, shift):
    """A rigid map of the world, (4, 4), RAS mm."""
    transform = SimpleITK.Euler3DTransform()
    transform.SetRotation(*angles)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    matrix[:3, 3] = shift
    return matrix


# Where the scanner has put the anatomy of each case; c0 is where it was drawn.
PLACES = {
    "c0": np.eye(4),
    "c1": world((0.2, -0.1, 0.3), (30.0, -10.0, 5.0)),
    "c2": world((-0.3, 0.2, 0.1), (-8.0, 40.0, 3.0)),
    "c3": world((0.1, 0.4, -0.2), (0.0, 0.0, -60.0)),
}


def write_itk(path, matrix):
    """Write a (4, 4) RAS matrix as ITK has it."""
    transform = SimpleITK.AffineTransform(3)
    transform.SetMatrix((matrix[:3, :3] * np.outer(SIGNS, SIGNS)).ravel().tolist())
    transform.SetTranslation((matrix[:3, 3] * SIGNS).tolist())
    SimpleITK.WriteTransform(transform, str(path))


@pytest.fixture
def dataset(raw_dataset):
    """The anatomy of c0 at four places, and the true transforms: c1 on c0, c1 on c2, and c3 on c2."""
    pairs = (("c1", "c0", "x.tfm"), ("c1", "c2", "y.mat"), ("c3", "c2", "z.h5"))
    entries = [{"moving": moving, "fixed": fixed, "initial": f"transformsTr/{name}"} for moving, fixed, name in pairs]
    folder = raw_dataset(pairing="listed", pairs=entries)
    image, labels = read_image(folder / "imagesTr" / "c0_0000.nii.gz"), read_labels(folder / "labelsTr" / "c0.nii.gz")
    (folder / "transformsTr").mkdir()
    for name, matrix in PLACES.items():
        geometry = Geometry.from_affine(matrix @ image.geometry.affine, image.geometry.shape)
        write_image(folder / "imagesTr" / f"{name}_0000.nii.gz", image.array, geometry)
        write_image(folder / "labelsTr" / f"{name}.nii.gz", labels.array, geometry)
    for moving, fixed, name in pairs:
        write_itk(folder / "transformsTr" / name, PLACES[moving] @ np.linalg.inv(PLACES[fixed]))
    return folder


def make_plans(prealignment):
    return PreprocessingPlans(
        spacing=(2.5, 2.5, 2.5),
        patch_size=(16, 16, 16),
        modality="MRI",
        normalization=(ChannelNormalization("percentile", 0.5, 99.5),),
        prealignment=prealignment,
        crop="anatomy",
        reference_case="c3" if prealignment == "affine" else None,
        label_values=(1, 7),
        label_names=("body", "spot"),
    )


@pytest.fixture
def run(dataset, roots):
    def run(prealignment):
        fingerprint = run.fingerprint = extract_fingerprint(roots, "700", OPTIONS)
        folder = roots.preprocessed / prealignment
        with ThreadPoolExecutor(1) as executor:
            preprocess_dataset(read_dataset(dataset), fingerprint, make_plans(prealignment), folder, executor)
        return folder

    return run


@pytest.mark.parametrize("prealignment", ["none", "center", "affine"])
def test_true_transforms_lay_the_cases_on_each_other_exactly(prealignment, run):
    folder = run(prealignment)
    frames = {name: np.array(read_record(folder / f"{name}.json", StoredCase).frame) for name in PLACES}
    for name, place in PLACES.items():
        np.testing.assert_allclose(frames[name], place @ frames["c0"], atol=1e-4)  # headers are float32
        # Turned about the anatomy, so that transforms taken the wrong way round would show.
        np.testing.assert_allclose(load_image(folder, name), load_image(folder, "c0"), atol=5e-3)
        assert np.mean(load_labels(folder, name) != load_labels(folder, "c0")) < 1e-3
    assert np.count_nonzero(load_labels(folder, "c0")) > 50


def test_an_anchor_gets_the_frame_that_it_would_have_without_transforms(run, dataset):
    with_transforms = read_record(run("center") / "c0.json", StoredCase).frame
    content = read_json(dataset / "dataset.json")
    pairs = [{key: pair[key] for key in ("moving", "fixed")} for pair in content["pairs"]]
    write_json(dataset / "dataset.json", content | {"pairs": pairs})
    folder = run("center")
    assert read_record(folder / "c0.json", StoredCase).frame == with_transforms
    assert not np.allclose(read_record(folder / "c1.json", StoredCase).frame, with_transforms)


def changed(folder, times):
    return sorted(path.stem for path in folder.glob("c?.json") if path.stat().st_mtime_ns != times[path.stem])


def test_another_transform_concerns_the_cases_that_follow_from_it(run, dataset):
    folder = run("center")
    times = {path.stem: path.stat().st_mtime_ns for path in folder.glob("c?.json")}
    assert changed(run("center"), times) == []
    write_itk(dataset / "transformsTr" / "y.mat", np.eye(4))
    assert changed(run("center"), times) == ["c2", "c3"]


def test_a_pair_turned_round_concerns_the_cases_that_follow_from_it(run, dataset):
    folder = run("center")
    times = {path.stem: path.stat().st_mtime_ns for path in folder.glob("c?.json")}
    content = read_json(dataset / "dataset.json")
    last = content["pairs"][-1]
    content["pairs"][-1] = last | {"moving": last["fixed"], "fixed": last["moving"]}
    write_json(dataset / "dataset.json", content)
    assert changed(run("center"), times) == ["c3"]


def test_a_case_whose_anchor_is_made_anew_is_made_anew(run):
    folder = run("center")
    times = {path.stem: path.stat().st_mtime_ns for path in folder.glob("c?.json")}
    (folder / "c0.npy").unlink()
    assert changed(run("center"), times) == ["c0", "c1", "c2", "c3"]


def test_cases_follow_an_anchor_whose_shared_centre_has_moved(run, dataset):
    folder = run("none")
    fingerprint = run.fingerprint
    moved = tuple(
        replace(case, foreground_center=tuple(value + 4 for value in case.foreground_center))
        for case in fingerprint.cases
    )
    with ThreadPoolExecutor(1) as executor:
        preprocess_dataset(
            read_dataset(dataset), replace(fingerprint, cases=moved), make_plans("none"), folder, executor
        )
    frames = {name: np.array(read_record(folder / f"{name}.json", StoredCase).frame) for name in PLACES}
    np.testing.assert_allclose(frames["c3"], PLACES["c3"] @ frames["c0"], atol=1e-4)


def test_the_way_from_raw_files_to_cases_takes_transforms(dataset, roots):
    content = read_json(dataset / "dataset.json")
    write_json(dataset / "dataset.json", content | {"pairs": [content["pairs"][0], content["pairs"][2]]})
    plans = plan_and_preprocess(roots, "700", OPTIONS)
    (folder,) = (roots.preprocessed / "Dataset700_Blobs").glob(f"biasregPlans_{plans.default_configuration}")
    frames = {name: np.array(read_record(folder / f"{name}.json", StoredCase).frame) for name in PLACES}
    for moving, fixed in (("c1", "c0"), ("c3", "c2")):
        expected = PLACES[moving] @ np.linalg.inv(PLACES[fixed])
        np.testing.assert_allclose(frames[moving] @ np.linalg.inv(frames[fixed]), expected, atol=1e-4)
    case = read_dataset(dataset).cases()[1]
    assert source_hash(case) != source_hash(replace(case, given=None))
