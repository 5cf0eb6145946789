"""The commands that give away and take in."""

import json

import numpy as np
import pytest

from biasreg.cli import convert_learn2reg, export_model, export_predictions, install_model
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import write_image
from biasreg.inference import models
from biasreg.sharing import export_model as exporting
from biasreg.sharing import install_model as installing


def test_arguments_of_an_export_reach_the_function(tmp_path, monkeypatch, capsys):
    seen = {}
    monkeypatch.setattr(models, "find_model", lambda results, request: seen.update(request=request) or "model")
    monkeypatch.setattr(
        exporting, "export_model", lambda model, output, options: seen.update(output=output, options=options)
    )
    output = tmp_path / "m.zip"
    more = ["-p", "mine", "--configuration", "3d_lowres", "-f", "0", "1", "-e", "summary.json", "--licence", "CC0"]
    code = export_model.main(["-d", "501", "-o", str(output), "--include_reference", *more, "--results", str(tmp_path)])
    assert code == 0
    assert seen["request"] == models.ModelRequest("501", "mine", "3d_lowres", ("0", "1"))
    options = seen["options"]
    assert (options.include_reference, options.without_reference, options.merge_lora) == (True, False, False)
    assert (str(options.evaluation), options.licence) == ("summary.json", "CC0")
    assert capsys.readouterr().out == f"{output}\n"


def test_an_export_cannot_both_include_and_leave_out(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        export_model.main(["-o", "m.zip", "--include_reference", "--without_reference"])
    assert end.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


def test_without_a_model_an_export_ends_with_code_2(tmp_path, capsys):
    assert export_model.main(["-o", str(tmp_path / "m.zip"), "--results", str(tmp_path)]) == 2
    assert "there is no trained model" in capsys.readouterr().err


def test_arguments_of_an_installation_reach_the_function_and_the_folder_is_printed(tmp_path, monkeypatch, capsys):
    seen = {}

    def install(source, results, *, force):
        seen.update(source=source, results=results, force=force)
        return results / "model"

    monkeypatch.setattr(installing, "install_model", install)
    assert install_model.main(["m.zip", "--force", "--results", str(tmp_path)]) == 0
    assert seen == {"source": "m.zip", "results": tmp_path, "force": True}
    assert capsys.readouterr().out == f"{tmp_path / 'model'}\n"


def test_what_is_no_archive_ends_with_code_2_and_one_line(tmp_path, capsys):
    (tmp_path / "m.zip").write_text("no archive")
    assert install_model.main([str(tmp_path / "m.zip"), "--results", str(tmp_path / "results")]) == 2
    assert capsys.readouterr().err.startswith("error: the archive cannot be read")


def test_a_learn2reg_dataset_is_converted(tmp_path, flags, capsys):
    folder = tmp_path / "Tiny"
    for number in (1, 2):
        path = folder / "imagesTr" / f"Tiny_{number:04d}_0000.nii.gz"
        write_image(path, np.ones((4, 4, 4), np.float32), Geometry.centered((4, 4, 4), (1.0, 1.0, 1.0)))
    (folder / "Tiny_dataset.json").write_text(json.dumps({"name": "Tiny", "modality": {"0": "CT"}}))
    assert convert_learn2reg.main(["-i", str(folder), "-d", "601", "--name", "Small", *flags]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'raw' / 'Dataset601_Small'}\n"
    assert convert_learn2reg.main(["-i", str(folder), "-d", "601", *flags]) == 2
    assert "the number 601 is taken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("form", "option"), [("bids", ["--zip"]), ("bids", ["--precision", "float16"]), ("learn2reg", ["--suffix", "T1w"])]
)
def test_options_of_the_other_form_are_refused(form, option, capsys):
    with pytest.raises(SystemExit) as end:
        export_predictions.main(["-i", "a", "-o", "b", "--format", form, *option])
    assert end.value.code == 2
    assert f"{option[0]} belongs to --format" in capsys.readouterr().err


def test_a_folder_without_fields_ends_with_code_2(tmp_path, capsys):
    assert export_predictions.main(["-i", str(tmp_path), "-o", str(tmp_path / "sub"), "--format", "bids"]) == 2
    assert "there is no field" in capsys.readouterr().err
