import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from biasreg.cli.evaluate import main
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import write_image
from biasreg.core.serialization import write_json
from biasreg.core.transform_io import write_displacement

GRID = Geometry.centered((10, 9, 8), (1, 1, 1))
SHIFT = np.broadcast_to(np.float32([2, 0, 0]), (*GRID.shape, 3))


def cube(start: int) -> np.ndarray:
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    labels[start : start + 4, 2:6, 2:6] = 1
    return labels


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A raw root with one dataset of one test pair, and its prediction beside."""
    dataset = tmp_path / "raw" / "Dataset007_Cube"
    for folder in ("imagesTr", "imagesTs", "labelsTs"):
        (dataset / folder).mkdir(parents=True)
    write_image(dataset / "imagesTr" / "c_0000.nii.gz", cube(0).astype(np.float32), GRID)
    for case, start in (("a", 4), ("b", 2)):
        write_image(dataset / "imagesTs" / f"{case}_0000.nii.gz", cube(start).astype(np.float32), GRID)
        write_image(dataset / "labelsTs" / f"{case}.nii.gz", cube(start), GRID)
    description = {
        "name": "Cube",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "cube": 1},
        "file_ending": ".nii.gz",
        "pairing": "inter-subject",
        "test_pairs": [{"moving": "a", "fixed": "b"}],
    }
    write_json(dataset / "dataset.json", description)
    write_displacement(tmp_path / "predictions" / "a_to_b_warp.nii.gz", SHIFT, GRID)
    return tmp_path


def arguments(root: Path, *more: str) -> list[str]:
    return ["-i", str(root / "predictions"), "-o", str(root / "out"), *more]


def test_a_raw_dataset_gives_pairs_and_label_names(root: Path, capsys) -> None:
    assert main(arguments(root, "-r", str(root / "raw" / "Dataset007_Cube"))) == 0
    summary = json.loads((root / "out" / "summary.json").read_text(encoding="utf-8"))
    assert [(method["method"], method["dice"]["mean"]) for method in summary["methods"]] == [
        ("identity", 0.5),
        ("biasreg", 1.0),
    ]
    printed = capsys.readouterr().out
    assert "1 cube" in printed
    assert printed == (root / "out" / "summary.txt").read_text(encoding="utf-8")
    assert (root / "out" / "scores.csv").is_file()


def test_a_dataset_id_is_enough(root: Path) -> None:
    roots = [f"--{name}={root / name}" for name in ("raw", "preprocessed", "results")]
    assert main(arguments(root, "-d", "7", *roots)) == 0


def test_results_go_beside_the_predictions_when_no_output_is_given(root: Path) -> None:
    assert main(["-i", str(root / "predictions"), "-r", str(root / "raw" / "Dataset007_Cube")]) == 0
    assert (root / "predictions" / "summary.json").is_file()


def test_further_methods_are_shown_under_their_names(root: Path, capsys) -> None:
    shutil.copytree(root / "predictions", root / "other")
    folder = str(root / "raw" / "Dataset007_Cube")
    assert main(arguments(root, "-r", folder, "--method", f"greedy={root / 'other'}")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["identity", "biasreg", "greedy"]


def test_the_method_to_compare_with_can_be_chosen(root: Path, capsys) -> None:
    shutil.copytree(root / "predictions", root / "other")
    folder = str(root / "raw" / "Dataset007_Cube")
    given = ["-r", folder, "--method", f"greedy={root / 'other'}", "--reference_method", "greedy"]
    assert main(arguments(root, *given)) == 0
    assert "compared with greedy" in capsys.readouterr().out


def test_a_missing_prediction_ends_with_code_one_after_all_is_written(root: Path, capsys) -> None:
    (root / "empty").mkdir()
    folder = str(root / "raw" / "Dataset007_Cube")
    given = ["-i", str(root / "empty"), "--method", f"mine={root / 'predictions'}", "-o", str(root / "out")]
    assert main([*given, "-r", folder]) == 1
    captured = capsys.readouterr()
    assert "FAILED a_to_b (biasreg)" in captured.out
    assert captured.err.splitlines()[-1] == "error: 1 pair(s) could not be evaluated: a_to_b; reasons are above"
    assert (root / "out" / "summary.json").is_file()


def test_where_nothing_can_be_measured_nothing_is_written_and_the_code_is_one(root: Path, capsys) -> None:
    (root / "predictions" / "a_to_b_warp.nii.gz").unlink()
    assert main(arguments(root, "-r", str(root / "raw" / "Dataset007_Cube"))) == 1
    captured = capsys.readouterr()
    assert "FAILED a_to_b (biasreg)" in captured.out
    assert captured.err.count("error: ") == 1
    assert not (root / "out").exists()


def test_another_evaluation_in_the_output_folder_ends_with_code_two(root: Path, capsys) -> None:
    folder = str(root / "raw" / "Dataset007_Cube")
    assert main(arguments(root, "-r", folder)) == 0
    shutil.copytree(root / "predictions", root / "other")
    assert main(["-i", str(root / "other"), "-o", str(root / "out"), "-r", folder]) == 2
    assert "summary.json is another evaluation" in capsys.readouterr().err


def test_a_missing_folder_ends_with_code_two(root: Path, capsys) -> None:
    assert main(["-i", str(root / "nowhere"), "-r", str(root / "raw" / "Dataset007_Cube")]) == 2
    assert "error: predictions of method 'biasreg': no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["-r", "x"], "give a folder of predictions"),
        (["-i", "x"], "give the reference pairs"),
        (["-i", "x", "-r", "x", "--method", "folder"], "expected NAME=FOLDER, got 'folder'"),
        (["-i", "x", "-r", "x", "--method", "biasreg=y"], "a method named biasreg is given twice"),
        (["-i", "x", "-r", "x", "--reference_method", "y"], "there is no method y; choose of biasreg"),
        (["-i", "x", "-r", "x", "-np", "0"], "expected a whole number of at least 1, got '0'"),
    ],
)
def test_wrong_arguments_say_what_is_missing(given: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as raised:
        main(given)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_help_comes_without_torch_and_names_the_outputs() -> None:
    script = (
        "import sys; from biasreg.cli.evaluate import main\n"
        "try: main(['-h'])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for name in ("summary.json", "scores.csv", "summary.txt"):
        assert name in result.stdout


@pytest.mark.slow
def test_worker_processes_give_the_same_scores(root: Path) -> None:
    folder = str(root / "raw" / "Dataset007_Cube")
    assert main(arguments(root, "-r", folder)) == 0
    alone = (root / "out" / "summary.json").read_text(encoding="utf-8")
    assert main(arguments(root, "-r", folder, "-np", "2")) == 0
    assert (root / "out" / "summary.json").read_text(encoding="utf-8") == alone
