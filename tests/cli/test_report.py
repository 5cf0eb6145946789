from pathlib import Path

import numpy as np
import pytest

from biasreg.cli.report import main
from biasreg.core.geometry import Geometry
from biasreg.core.transform_io import write_displacement

GRID = Geometry.centered((6, 5, 4), (1, 1, 1))


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    write_displacement(tmp_path / "out" / "a_warp.nii.gz", np.zeros((*GRID.shape, 3)), GRID)
    return tmp_path / "out"


def test_the_report_is_written_and_named(predictions: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "new" / "report.html"
    assert main(["-i", str(predictions), "-o", str(output), "--pairs", "0"]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    assert output.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_something_must_be_given(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "give a dataset (-d), a folder of predictions (-i) or an evaluation (-e)" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["-1", "many"])
def test_the_number_of_pairs_is_a_whole_number(predictions: Path, count: str, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["-i", str(predictions), f"--pairs={count}"])
    assert "expected a whole number" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_unusable_input(tmp_path: Path, capsys) -> None:
    assert main(["-i", str(tmp_path / "nowhere"), "-o", str(tmp_path / "report.html")]) == 2
    assert "there is no such folder of predictions" in capsys.readouterr().err


def test_a_dataset_without_roots_is_unusable_input(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("BIASREG_ROOT", "biasreg_raw", "biasreg_preprocessed", "biasreg_results"):
        monkeypatch.delenv(name, raising=False)
    assert main(["-d", "501"]) == 2
    assert "no folder is known for" in capsys.readouterr().err
