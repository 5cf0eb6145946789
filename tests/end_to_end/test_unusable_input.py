"""What a user gets to see when the input cannot be used: exit code 2, one error, no traceback, nothing written."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest

from biasreg.cli import plan_and_preprocess, predict, train
from biasreg.core.image_io import read_image, write_image
from biasreg.preprocessing import prepare


@pytest.fixture(scope="module")
def sound_dataset(tmp_path_factory, make_dataset):
    return make_dataset(tmp_path_factory.mktemp("sound"), train=3, spacing_mm=(13.0, 14.0))


@pytest.fixture
def root(tmp_path, sound_dataset, monkeypatch):
    """A root of its own with the dataset; work that goes to processes runs in a thread."""
    monkeypatch.setattr(prepare, "process_executor", lambda workers: ThreadPoolExecutor(1))
    monkeypatch.setenv("BIASREG_ROOT", str(tmp_path / "root"))
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"biasreg_{name}", raising=False)
    shutil.copytree(sound_dataset, tmp_path / "root" / "raw" / sound_dataset.name)
    return tmp_path / "root"


@pytest.fixture
def dataset(root):
    return root / "raw" / "Dataset501_Phantom"


@pytest.fixture
def refused(root, capsys):
    """Return a function that runs a command which must end with code 2, and returns its one error message."""

    def run(main, *arguments):
        before = {path: path.stat().st_mtime_ns for path in root.parent.rglob("*")}
        assert main([str(argument) for argument in arguments]) == 2
        assert {path: path.stat().st_mtime_ns for path in root.parent.rglob("*")} == before
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        assert captured.err.count("error:") == 1
        _, _, message = captured.err.partition("error: ")
        return message.strip()

    return run


PLAN = (plan_and_preprocess.main, "-d", "501", "-gpu_memory_target", "0")
IMAGE = "imagesTr/demo_001_0000.nii.gz"
LABELS = "labelsTr/demo_002.nii.gz"


def test_an_unknown_dataset(refused):
    message = refused(plan_and_preprocess.main, "-d", "77", "-gpu_memory_target", "0")
    assert "there is no dataset 77; the folder holds: Dataset501_Phantom" in message


def test_no_dataset_at_all(refused, root):
    shutil.rmtree(root / "raw")
    assert "make it" in refused(*PLAN)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chanel_names": {"0": "CT"}}, "chanel_names: unknown field"),
        ({"pairing": "any"}, 'pairing: expected one of "inter-subject"'),
        ({"labels": {"background": 0, "liver": "1"}}, 'labels.liver: expected a whole number, got "1"'),
        ({"labels": {"liver": 1}}, "background"),
        ({"file_ending": ".dcm"}, ".dcm"),
    ],
)
def test_a_wrong_field_of_dataset_json(refused, dataset, change, words):
    path = dataset / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    message = refused(*PLAN)
    assert str(path) in message or str(dataset) in message
    assert words in message


def test_dataset_json_that_is_no_json(refused, dataset):
    (dataset / "dataset.json").write_text('{"name": "Phantom",}')
    assert "not valid JSON at line 1" in refused(*PLAN)


def rewrite(path, change, affine=None):
    volume = nibabel.load(path)
    array = change(np.asanyarray(volume.dataobj).copy())
    image = nibabel.Nifti1Image(array, volume.affine if affine is None else affine)
    image.set_qform(None, code=0)
    image.set_sform(image.affine, code=1)
    nibabel.save(image, path)


def put_nan(dataset):
    def change(array):
        array[1, 2, 3] = np.nan
        return array

    rewrite(dataset / IMAGE, change)


def add_a_volume(dataset):
    rewrite(dataset / IMAGE, lambda array: np.stack([array, array], axis=-1))


def shear(dataset):
    sheared = nibabel.load(dataset / IMAGE).affine @ np.array(
        [[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    rewrite(dataset / IMAGE, lambda array: array, sheared)


def cut(dataset):
    (dataset / IMAGE).write_bytes((dataset / IMAGE).read_bytes()[:700])


def crop_labels(dataset):
    rewrite(dataset / LABELS, lambda array: array[1:])


def put_unknown_label(dataset):
    def change(array):
        array[0, 0, 0] = 99
        return array

    rewrite(dataset / LABELS, change)


def empty_labels(dataset):
    rewrite(dataset / LABELS, np.zeros_like)


def double_the_image(dataset):
    shutil.copyfile(dataset / IMAGE, dataset / "imagesTr" / "demo_001.nii.gz")


def add_a_channel(dataset):
    shutil.copyfile(dataset / IMAGE, dataset / "imagesTr" / "demo_001_0001.nii.gz")


FAULTS = {
    put_nan: (IMAGE, "NaN"),
    add_a_volume: (IMAGE, "more than one volume"),
    shear: (IMAGE, "sheared"),
    cut: (IMAGE, "cut off"),
    crop_labels: (LABELS, "grid"),
    put_unknown_label: (LABELS, "99"),
    empty_labels: (LABELS, "background only"),
    double_the_image: ("imagesTr/demo_001.nii.gz", "same channel"),
    add_a_channel: ("case demo_001_0001", "dataset.json names 1 channel"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_an_unusable_file(refused, dataset, fault):
    fault(dataset)
    file, words = FAULTS[fault]
    message = refused(*PLAN)
    assert file in message
    assert words in message


def test_all_faults_of_a_dataset_come_at_once(refused, dataset):
    for fault in (crop_labels, double_the_image):
        fault(dataset)
    (dataset / "imagesTr" / "demo_003_0000.nii.gz").write_bytes(b"no image")
    message = refused(*PLAN)
    assert "3 faults" in message
    assert len(message.splitlines()) == 4


def test_training_before_planning(refused):
    message = refused(train.main, "501", "0", "-device", "cpu")
    assert "it is not preprocessed; run `biasreg_plan_and_preprocess -d 501`" in message


@pytest.fixture
def pairs(root, dataset):
    folder = root.parent / "pairs"
    for role, case in (("moving", "004"), ("fixed", "005")):
        image = read_image(dataset / "imagesTs" / f"demo_{case}_0000.nii.gz")
        write_image(folder / f"a_{role}.nii.gz", image.array, image.geometry)
    return folder


def test_predicting_before_training(refused, root, pairs):
    message = refused(predict.main, "-i", pairs, "-o", root / "out")
    assert "there is no trained model" in message
    assert "`biasreg_train DATASET 0`" in message


def test_predicting_with_several_trained_models(refused, root, pairs):
    for name in ("Dataset501_Phantom", "Dataset502_Other"):
        fold = root / "results" / name / "biasregPlans__3d_fullres" / "fold_0"
        fold.mkdir(parents=True)
        (fold / "checkpoint_best.pth").touch()
        (fold.parent / "plans.json").touch()
    message = refused(predict.main, "-i", pairs, "-o", root / "out")
    assert "there are 2 trained models" in message
    assert "Dataset501_Phantom/biasregPlans__3d_fullres" in message
    assert "choose one with -d" in message
