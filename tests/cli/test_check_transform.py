import json

import nibabel
import numpy as np
import pytest

from biasreg.cli.check_transform import main
from biasreg.core.geometry import Geometry
from biasreg.core.transform_io import write_displacement

GRID = Geometry.centered((12, 11, 10), (1, 1, 1))


@pytest.fixture
def field(tmp_path):
    write_displacement(tmp_path / "a.nii.gz", np.full((*GRID.shape, 3), 1.5, np.float32), GRID)
    return tmp_path / "a.nii.gz"


def test_a_sound_field_is_explained_and_passes(field, capsys):
    assert main([str(field)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("A transform of 1 part(s): 1 displacement field(s)")
    verdicts = [line.split(":")[0] for line in lines if line.startswith(("PASS", "WARN", "FAIL"))]
    assert verdicts == ["PASS form", "PASS finite", "PASS size", "PASS folding", "PASS there and back"]


def test_json_holds_the_same(field, capsys):
    assert main([str(field), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["displacements"]["largest"] == pytest.approx(1.5 * 3**0.5)
    assert {line["verdict"] for line in found["lines"]} == {"PASS"}


def test_a_form_that_tools_misread_ends_with_code_one(tmp_path, capsys):
    nibabel.save(nibabel.Nifti1Image(np.zeros((*GRID.shape, 3), np.float32), GRID.affine), tmp_path / "b.nii.gz")
    assert main([str(tmp_path / "b.nii.gz")]) == 1
    assert capsys.readouterr().out.startswith("FAIL form: ")


def test_what_cannot_be_read_ends_with_code_two(tmp_path, field, capsys):
    assert main([str(tmp_path / "none.h5")]) == 2
    assert "error: " in capsys.readouterr().err
    assert main([str(field), "--reference", str(tmp_path / "none.nii.gz")]) == 2
