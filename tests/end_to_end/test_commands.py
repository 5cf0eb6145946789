"""The commands of the README in processes of their own, on a small synthetic dataset."""

import json
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from biasreg.core.image_io import read_geometry, read_labels
from biasreg.core.serialization import read_record
from biasreg.core.transform_io import read_displacement
from biasreg.evaluation.records import Evaluation
from biasreg.inference.record import PredictionRecord
from biasreg.planning.plans import Plans
from biasreg.preprocessing.storage import StoredCase
from biasreg.training.validation import ValidationResult

pytestmark = pytest.mark.slow

TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Project:
    """A working folder with a raw dataset under `data/` and two pairs under `pairs/`."""

    folder: Path

    def start(self, command: str) -> subprocess.Popen:
        name, *arguments = command.split()
        environment = {key: value for key, value in os.environ.items() if not key.lower().startswith("biasreg_")}
        environment |= {"BIASREG_ROOT": str(self.folder / "data"), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [Path(sysconfig.get_path("scripts")) / name, *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command: str, code: int = 0) -> subprocess.CompletedProcess:
        with self.start(command) as process:
            output, errors = process.communicate(timeout=TIMEOUT_SECONDS)
        assert process.returncode == code, f"{command}: exit code {process.returncode}\n{errors}"
        assert "Traceback" not in errors
        assert "Warning" not in errors, errors
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def files(self, *parts: str) -> dict[str, int]:
        """Every file below a folder with the time of its last change."""
        folder = self.folder.joinpath(*parts)
        return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def write_pairs(dataset: Path, folder: Path) -> None:
    folder.mkdir()
    first, second = sorted(path.name.removesuffix("_0000.nii.gz") for path in (dataset / "imagesTs").iterdir())
    for pair, cases in (("there", (first, second)), ("back", (second, first))):
        for role, case in zip(("moving", "fixed"), cases, strict=True):
            shutil.copyfile(dataset / "imagesTs" / f"{case}_0000.nii.gz", folder / f"{pair}_{role}.nii.gz")
            shutil.copyfile(dataset / "labelsTs" / f"{case}.nii.gz", folder / f"{pair}_{role}_seg.nii.gz")


PLAN = "biasreg_plan_and_preprocess -d 501"
TRAIN = "biasreg_train 501 0 --epochs 1 --iterations_per_epoch 3"
PREDICT = "biasreg_predict -i pairs/ -o out/"


@pytest.fixture(scope="module")
def project(tmp_path_factory, make_dataset) -> Project:
    """The project after the three commands."""
    project = Project(tmp_path_factory.mktemp("project"))
    write_pairs(make_dataset(project.folder / "data" / "raw"), project.folder / "pairs")
    for command in (PLAN, TRAIN, PREDICT):
        project.run(command)
    return project


def test_planning_leaves_facts_decisions_and_a_record_of_every_case(project):
    folder = project.folder / "data" / "preprocessed" / "Dataset501_Phantom"
    assert {"dataset.json", "dataset_fingerprint.json", "splits_final.json", "biasregPlans.json"} <= {
        path.name for path in folder.iterdir()
    }
    plans = read_record(folder / "biasregPlans.json", Plans)
    why = plans.why[plans.default_configuration]
    assert set(why) >= {"spacing", "patch_size", "prealignment", "encoder", "similarity"}
    cases = folder / f"biasregPlans_{plans.default_configuration}"
    records = [read_record(cases / f"demo_00{number}.json", StoredCase) for number in range(1, 6)]
    assert all(record.annotated for record in records)


def test_training_leaves_a_model_a_log_and_scores(project):
    (fold,) = (project.folder / "data" / "results" / "Dataset501_Phantom").glob("biasregPlans__*/fold_0")
    assert {path.name for path in fold.iterdir()} == {
        ".lock",
        "checkpoint_best.pth",
        "checkpoint_latest.pth",
        "metrics.jsonl",
        "progress.png",
        "training_log.txt",
        "validation.json",
    }
    (line,) = (fold / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["iteration"] == 3
    assert read_record(fold / "validation.json", ValidationResult).pairs


def test_prediction_gives_every_output_of_every_pair_on_its_grid(project):
    pairs, out = project.folder / "pairs", project.folder / "out"
    suffixes = ("_warp.nii.gz", "_inverse_warp.nii.gz", "_warped.nii.gz", "_warped_seg.nii.gz", ".json")
    assert set(project.files("out")) == {f"{pair}{suffix}" for pair in ("there", "back") for suffix in suffixes}
    for pair in ("there", "back"):
        record = read_record(out / f"{pair}.json", PredictionRecord)
        assert record.provenance.device == "cpu"
        assert len(record.accuracy.dice_after) == 7
        assert record.quality.inverse_error.mean_mm < 1
        assert read_displacement(out / f"{pair}_warp.nii.gz")[1].is_close(read_geometry(pairs / f"{pair}_fixed.nii.gz"))
        inverse = read_displacement(out / f"{pair}_inverse_warp.nii.gz")[1]
        assert inverse.is_close(read_geometry(pairs / f"{pair}_moving.nii.gz"))
        labels = read_labels(out / f"{pair}_warped_seg.nii.gz").array
        assert set(np.unique(labels)) <= set(range(8))


def test_evaluation_agrees_with_the_records_of_prediction(project):
    printed = project.run("biasreg_evaluate -i out/ -r pairs/ -d 501 -o scores/").stdout
    assert "left_kidney" in printed
    evaluation = read_record(project.folder / "scores" / "summary.json", Evaluation)
    assert [method.method for method in evaluation.methods] == ["identity", "biasreg"]
    records = {
        pair: read_record(project.folder / "out" / f"{pair}.json", PredictionRecord) for pair in ("there", "back")
    }
    for scores in evaluation.pairs:
        accuracy = records[scores.pair].accuracy
        expected = accuracy.dice_before if scores.method == "identity" else accuracy.dice_after
        assert scores.dice == pytest.approx(np.mean(list(expected.values())), abs=1e-6)


def test_planning_again_changes_nothing(project):
    before = project.files("data", "preprocessed", "Dataset501_Phantom")
    errors = project.run(PLAN).stderr
    after = project.files("data", "preprocessed", "Dataset501_Phantom")
    assert "fingerprint kept" in errors
    assert "5 of 5 cases are already preprocessed" in errors
    assert set(before) == set(after)
    arrays = [name for name in before if name.endswith(".npy") or "fingerprint" in name]
    assert [before[name] for name in arrays] == [after[name] for name in arrays]


def test_training_again_is_refused_and_a_finished_run_is_not_resumed(project):
    before = project.files("data", "results")
    errors = project.run(TRAIN, code=2).stderr
    assert errors.splitlines()[-1].startswith("error: this fold was trained before")
    assert project.files("data", "results") == before
    assert "this run is finished" in project.run("biasreg_train 501 0 --c").stderr


def test_predicting_again_gives_the_same_bytes_and_continuing_does_nothing(project):
    fields = {path.name: path.read_bytes() for path in (project.folder / "out").glob("*.nii.gz")}
    project.run("biasreg_predict -i pairs/ -o again/")
    assert fields == {path.name: path.read_bytes() for path in (project.folder / "again").glob("*.nii.gz")}
    before = project.files("again")
    errors = project.run("biasreg_predict -i pairs/ -o again/ --continue_prediction").stderr
    assert "registered 0 of 2 pair(s) into again; 2 were registered already and are kept" in errors
    assert project.files("again") == before


def test_the_test_pairs_of_the_dataset_need_no_folder_of_pairs(project):
    project.run("biasreg_predict -i data/raw/Dataset501_Phantom -o test_out/ -d 501 --save jacobian h5")
    project.run("biasreg_evaluate -i test_out/ -d 501")
    files = project.files("test_out")
    assert "demo_006_to_demo_007_jacobian.nii.gz" in files
    assert "demo_007_to_demo_006_warp.h5" in files
    evaluation = read_record(project.folder / "test_out" / "summary.json", Evaluation)
    assert all(scores.landmarks is not None for scores in evaluation.pairs)


def test_a_failing_pair_is_named_at_the_end_and_costs_only_itself(project):
    shutil.copytree(project.folder / "pairs", project.folder / "mixed")
    path = project.folder / "mixed" / "there_fixed.nii.gz"
    path.write_bytes(path.read_bytes()[:-100])
    errors = project.run("biasreg_predict -i mixed/ -o mixed_out/", code=1).stderr
    *lines, end, error = errors.splitlines()
    (reason,) = [line for line in lines if line.startswith("pair there failed: ")]
    assert "there_fixed.nii.gz" in reason
    assert re.match(r"registered 1 of 2 pair\(s\) into mixed_out; \d PASS, \d WARN, \d FAIL; folding at most ", end)
    assert error == "error: 1 pair(s) failed: there; reasons are above"
    assert {name.split("_")[0].split(".")[0] for name in project.files("mixed_out")} == {"back"}


def test_an_interrupted_training_is_resumed(project):
    (model,) = (project.folder / "data" / "results" / "Dataset501_Phantom").glob("biasregPlans__*")
    metrics = model / "fold_1" / "metrics.jsonl"
    with project.start("biasreg_train 501 1 --epochs 3 --iterations_per_epoch 4 --num_workers 1") as process:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not metrics.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=TIMEOUT_SECONDS)[1]
    assert process.returncode == 130, errors
    assert "--c" in errors
    project.run("biasreg_train 501 1 --c")
    assert [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()] == [1, 2, 3]
    shutil.rmtree(model / "fold_1")
