"""Pseudo-labels by the real TotalSegmentator, with a small network of known results in place of its weights."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from biasreg.core.dataset import read_dataset
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import Image, read_image, read_labels, write_image
from biasreg.core.pseudo_labels import PseudoLabelRecord
from biasreg.core.serialization import read_record, write_json
from biasreg.core.verification import verify_dataset

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("make_totalsegmentator_weights.py")
EXAMPLES = ROOT / "shared" / "data" / "totalsegmentator_examples"
if not EXAMPLES.is_dir():
    EXAMPLES = ROOT.parent / "shared" / "data" / "totalsegmentator_examples"
COMMAND = "import sys; from biasreg.cli.{module} import main; sys.exit(main(sys.argv[1:]))"
INTENSITIES = {"total": {"liver": 0, "kidney_left": 500, "kidney_right": 1000}, "total_mr": {"liver": 0, "spleen": 500}}
AIR, LIVER, LEFT, RIGHT = -1000.0, 0.0, 500.0, 1000.0
JSON = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "pairing": "inter-subject"}


@pytest.fixture(scope="module")
def python() -> str:
    """The Python that has TotalSegmentator: that of $BIASREG_TOTALSEGMENTATOR_PYTHON, or this one."""
    named = os.environ.get("BIASREG_TOTALSEGMENTATOR_PYTHON")
    if named and not Path(named).is_file():
        pytest.fail(f"$BIASREG_TOTALSEGMENTATOR_PYTHON names {named}, which does not exist")
    if not named and importlib.util.find_spec("totalsegmentator") is None:
        pytest.skip(
            "TotalSegmentator: not installed here (extra pseudolabels), and no $BIASREG_TOTALSEGMENTATOR_PYTHON is set"
        )
    return named or sys.executable


@pytest.fixture(scope="module")
def weights(python, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    for task, intensities in INTENSITIES.items():
        call([python, SCRIPT, folder, task, json.dumps(intensities)])
    return folder


@pytest.fixture(scope="module")
def run(python, weights, tmp_path_factory) -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    """Return a function that runs one of biasreg's commands there; TotalSegmentator's home folder must stay empty."""
    home = tmp_path_factory.mktemp("home")
    environment = {"TOTALSEG_HOME_DIR": str(home), "TOTALSEG_WEIGHTS_PATH": str(weights)}

    def run(root: Path, *arguments: object, module="pseudo_label", check=True, **changes: str):
        command = [python, "-c", COMMAND.format(module=module), *arguments]
        return call(command, environment | {"BIASREG_ROOT": str(root)} | changes, check=check)

    yield run
    assert not list(home.iterdir())


def call(arguments: list, changes: dict[str, str] | None = None, check: bool = True) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(changes or {})}
    result = subprocess.run(
        [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert not check or result.returncode == 0, result.stderr
    return result


def organs(shift: int) -> Image:
    """A patient with a large ball and two small ones, on a grid whose axes run left, posterior, up."""
    affine = np.diag([-2.5, -2.0, 3.0, 1.0])
    affine[:3, 3] = [60.0, 50.0, -20.0]
    geometry = Geometry.from_affine(affine, (48, 46, 30))
    points = np.stack(np.indices(geometry.shape), axis=-1) * (2.5, 2.0, 3.0)
    image = np.full(geometry.shape, AIR, dtype=np.float32)
    for center, radius, value in (((60, 46, 45), 34, LIVER), ((40, 40, 40), 12, LEFT), ((80, 50, 48), 12, RIGHT)):
        image[np.linalg.norm(points - np.array(center) - (shift, 0, 0), axis=-1) < radius] = value
    return Image(image, geometry)


def truth(image: np.ndarray, values: dict[float, int]) -> np.ndarray:
    return np.select([image == intensity for intensity in values], list(values.values()), 0).astype(np.uint8)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second))


def write_ct(root: Path) -> Path:
    """Three CTs, the second with the left kidney drawn by hand, a little too large."""
    folder = root / "raw" / "Dataset700_Organs"
    for number in range(3):
        image = organs(2 * number)
        write_image(folder / "imagesTr" / f"c{number}_0000.mha", image.array, image.geometry)
    drawn = truth(organs(2).array, {LEFT: 9})
    drawn[1:] = np.maximum(drawn[1:], drawn[:-1])
    write_image(folder / "labelsTr" / "c1.mha", drawn, image.geometry)
    labels = {"background": 0, "Liver": 4, "left kidney": 9, "Kidney Right": 300, "tumour": 5}
    write_json(folder / "dataset.json", JSON | {"name": "Organs", "file_ending": ".mha", "labels": labels})
    return folder


@pytest.fixture(scope="module")
def segmented(run, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """The three CTs with their pseudo-labels, and what the command said."""
    root = tmp_path_factory.mktemp("segmented")
    folder = write_ct(root)
    return folder, run(root, "-d", "700", "--fast", "-device", "cpu")


def test_what_it_finds_becomes_the_labels_of_the_dataset(segmented):
    folder, result = segmented
    assert "labels that TotalSegmentator total does not make: tumour" in result.stderr
    assert result.stdout == ""
    dataset = read_dataset(folder)
    for number, case in enumerate(dataset.cases("Tr")):
        labels, image = read_labels(case.labels), read_image(case.images[0])
        assert labels.geometry.is_close(image.geometry)
        for intensity, value in ((LIVER, 4), (LEFT, 9), (RIGHT, 300)):
            # It works at 3 mm, so that the surfaces are not quite those of the image.
            least = 0.9 if value == 4 else 0.8
            assert dice(labels.array == value, organs(2 * number).array == intensity) > least
    drawn, completed = (read_labels(folder / place / "c1.mha").array for place in ("labelsTr", "pseudo_labelsTr"))
    assert ((completed == 9) == (drawn == 9)).all()
    verify_dataset(dataset)


def test_the_record_names_version_task_weights_and_agreement(segmented):
    record = read_record(segmented[0] / "pseudo_labelsTr" / "c1.json", PseudoLabelRecord)
    assert record.segmenter.name == "TotalSegmentator"
    assert record.segmenter.version[0].isdigit()
    assert record.segmenter.task == "total"
    assert [name.startswith("Dataset297_") for name in record.weights] == [True]
    assert record.seconds > 0
    origins = {label.name: label.origin for label in record.labels}
    assert origins == {"Liver": "pseudo", "left kidney": "manual", "Kidney Right": "pseudo"}
    assert next(label.manual_dice for label in record.labels if label.origin == "manual") > 0.8


def test_a_second_run_and_planning_keep_what_is_there(run, segmented):
    root = segmented[0].parents[1]
    times = {path: path.stat().st_mtime_ns for path in (segmented[0] / "pseudo_labelsTr").iterdir()}
    assert "3 of 3 cases are up to date" in run(root, "-d", "700", "--fast", "-device", "cpu").stderr
    options = ("--pseudo_labels", "-gpu_memory_target", "0", "-np", "1")
    result = run(root, "-d", "700", *options, module="plan_and_preprocess")
    assert "3 of 3 cases are up to date" in result.stderr
    assert "3 of 3 training cases have pseudo-labels" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in (segmented[0] / "pseudo_labelsTr").iterdir()} == times


def test_an_mr_is_for_the_mr_task_and_one_label_may_be_made_of_two_classes(run, tmp_path):
    folder, image = tmp_path / "raw" / "Dataset701_MR", organs(0)
    write_image(folder / "imagesTr" / "a_0000.nii.gz", image.array, image.geometry)
    labels = {"background": 0, "all": 1}
    write_json(folder / "dataset.json", JSON | {"name": "MR", "channel_names": {"0": "MRI"}, "labels": labels})
    write_json(tmp_path / "map.json", {"all": ["liver", "spleen"]})
    run(tmp_path, "-d", "701", "--fast", "-device", "cpu", "--label_map", tmp_path / "map.json")
    (case,) = read_dataset(folder).cases("Tr")
    assert dice(read_labels(case.labels).array == 1, image.array > AIR) > 0.9
    record = read_record(case.pseudo.record, PseudoLabelRecord)
    assert [name.startswith("Dataset852_") for name in record.weights] == [True]


@pytest.mark.skipif(shutil.which("pgrep") is None, reason="pgrep is not installed")
def test_one_interrupt_from_the_terminal_ends_it(python, weights, tmp_path):
    folder = write_ct(tmp_path)
    settings = {"TOTALSEG_HOME_DIR": str(tmp_path), "TOTALSEG_WEIGHTS_PATH": str(weights), "PYTHONPATH": str(ROOT)}
    command = [python, "-c", COMMAND.format(module="pseudo_label"), "-d", "700", "--fast", "-device", "cpu"]
    process = subprocess.Popen(
        [*command, "--raw", tmp_path / "raw", "--preprocessed", tmp_path, "--results", tmp_path],
        env=os.environ | settings,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while len(processes_of(process.pid)) < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)  # nnU-Net's workers are started one after the other
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stderr.close()
        process.wait()
    assert process.returncode == 130
    assert errors.rstrip().endswith("error: interrupted")
    assert "Traceback" not in errors
    assert not (folder / "pseudo_labelsTr").exists()


def processes_of(group: int) -> list[str]:
    return subprocess.run(["pgrep", "-g", str(group)], capture_output=True, text=True, check=False).stdout.split()


@pytest.mark.parametrize("option", [["--fast"], [], ["--task", "lung_vessels"]])
def test_missing_weights_are_an_error_at_once_and_nothing_is_written(run, tmp_path, option):
    folder = write_ct(tmp_path)
    write_json(tmp_path / "map.json", {"Liver": "lung_veins"} if "--task" in option else {})
    arguments = ["-d", "700", "-device", "cpu", *option, "--label_map", tmp_path / "map.json"]
    result = run(tmp_path, *arguments, check=False, TOTALSEG_WEIGHTS_PATH=str(tmp_path / "none"))
    assert result.returncode == 2
    assert "error: weights of TotalSegmentator are missing: Dataset" in result.stderr
    assert "totalseg_download_weights -t" in result.stderr
    assert not (folder / "pseudo_labelsTr").exists()


def test_a_task_under_licence_is_refused_in_one_line(run, tmp_path):
    write_ct(tmp_path)
    write_json(tmp_path / "map.json", {"Liver": "heart_myocardium"})
    task = ("--task", "heartchambers_highres", "--label_map", tmp_path / "map.json")
    result = run(tmp_path, "-d", "700", "-device", "cpu", *task, check=False)
    assert result.returncode == 2
    assert "needs a licence number, free for non-commercial use" in result.stderr


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="shared/data/totalsegmentator_examples is not here")
def test_its_own_example_gets_labels_on_its_own_grid(run, tmp_path):
    folder, image = tmp_path / "raw" / "Dataset702_Example", read_image(EXAMPLES / "example_ct_sm.nii.gz")
    write_image(folder / "imagesTr" / "a_0000.nii.gz", image.array, image.geometry)
    write_json(folder / "dataset.json", JSON | {"name": "Example", "labels": {"background": 0, "liver": 1}})
    run(tmp_path, "-d", "702", "--fast", "-device", "cpu")
    labels = read_labels(folder / "pseudo_labelsTr" / "a.nii.gz")
    assert labels.geometry.is_close(image.geometry)
    nearest = (image.array > -500) & (image.array < 250)  # of -1000, 0 and 500
    assert dice(labels.array == 1, nearest) > 0.95
