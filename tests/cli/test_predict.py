import os
import subprocess
import sys

import numpy as np
import pytest

from biasreg.cli import predict as command
from biasreg.cli.predict import main
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import write_image
from biasreg.inference import models, predict

GRID = Geometry.centered((8, 8, 8), (1.0, 1.0, 1.0))


@pytest.fixture
def pairs(tmp_path):
    folder = tmp_path / "pairs"
    for role in ("moving", "fixed"):
        write_image(folder / f"a_{role}.nii.gz", np.ones(GRID.shape, dtype=np.float32), GRID)
    return folder


@pytest.fixture
def arguments(tmp_path, pairs):
    return ["-i", str(pairs), "-o", str(tmp_path / "out"), f"--results={tmp_path / 'results'}", "--device", "cpu"]


def test_help_comes_without_torch_and_names_the_choices():
    code = (
        "import sys\nfrom biasreg.cli.predict import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for option in ("--input", "--output", "--folds", "--save", "jacobian", "--continue_prediction", "-device"):
        assert option in result.stdout


@pytest.mark.parametrize("given", [["-i", "x"], ["-o", "x"], ["-i", "x", "-o", "y", "--save", "everything"]])
def test_wrong_arguments_end_with_code_2(given, capsys):
    with pytest.raises(SystemExit) as end:
        main(given)
    assert end.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_without_a_trained_model_the_command_to_train_is_named(arguments, tmp_path, capsys):
    assert main([*arguments, "-d", "501"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: there is no trained model of dataset 501")
    assert "`biasreg_train 501 0`" in lines[0]
    assert not (tmp_path / "out").exists()


def test_only_the_folder_of_results_must_be_known(arguments, tmp_path, monkeypatch, capsys):
    for name in [name for name in os.environ if name.lower().startswith("biasreg_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert "there is no trained model" in capsys.readouterr().err
    assert main(arguments[:4]) == 2
    assert "no folder is known for: results" in capsys.readouterr().err


@pytest.fixture
def calls(monkeypatch):
    """What the command asks of the functions behind it; no pair fails."""
    seen = {}

    def find_model(results, request):
        seen.update(results=results, request=request)
        return "model"

    def predict_pairs(source, output, model, device, options):
        seen.update(source=source, output=output, model=model, device=device, options=options)
        return seen.get("failures", {})

    monkeypatch.setattr(models, "find_model", find_model)
    monkeypatch.setattr(predict, "predict_pairs", predict_pairs)
    return seen


def test_arguments_reach_the_function(arguments, calls, tmp_path):
    more = ["-d", "501", "-p", "mine", "--configuration", "3d_lowres", "-f", "0", "all", "--save", "h5", "jacobian"]
    assert main([*arguments, *more, "--continue_prediction", "--strict"]) == 0
    assert calls["request"] == models.ModelRequest("501", "mine", "3d_lowres", ("0", "all"))
    assert calls["options"] == predict.PredictOptions(("h5", "jacobian"), overwrite=False, strict=True)
    assert (calls["source"], calls["output"]) == (tmp_path / "pairs", tmp_path / "out")
    assert str(calls["device"]) == "cpu"


def test_by_default_the_model_is_found_and_all_is_done_anew(arguments, calls, capsys):
    assert main(arguments) == 0
    assert calls["request"] == models.ModelRequest()
    assert calls["options"] == predict.PredictOptions()
    assert capsys.readouterr().out == ""


def test_failed_pairs_are_named_at_the_end_with_exit_code_1(arguments, calls, capsys):
    calls["failures"] = {"a": "the file is damaged", "b": "too large"}
    assert main(arguments) == 1
    assert capsys.readouterr().err.endswith("error: 2 pair(s) failed: a, b; reasons are above\n")


def test_a_device_that_is_not_there_is_an_input_error(arguments, calls, capsys):
    assert main([*arguments[:-1], "tpu"]) == 2
    assert "error: device 'tpu' is not available here" in capsys.readouterr().err


def test_an_interruption_ends_with_130(arguments, calls, monkeypatch, capsys):
    def interrupt(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "predict_pairs", interrupt)
    assert main(arguments) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.fixture
def asked(monkeypatch):
    """The options that the command makes of its arguments; nothing is registered."""
    found = []
    monkeypatch.setattr(models, "find_model", lambda *arguments: None)
    monkeypatch.setattr(predict, "predict_pairs", lambda *arguments: found.append(arguments[3:]) or {})
    return found


def test_options_become_what_they_say(arguments, asked):
    given = ["--tta", "xz", "--refine", "12", "--save", "jacobian,h5", "levels", "--save", "h5", "--uncompressed"]
    assert main([*arguments, *given, "-npp", "3", "-nps", "2", "--num_parts", "4", "--part_id", "3"]) == 0
    ((_, options),) = asked
    assert options == predict.PredictOptions(
        save=("jacobian", "h5", "levels"),
        mirror_axes=(0, 2),
        refine_steps=12,
        compressed=False,
        part=(3, 4),
        workers=(3, 2),
    )


def test_alone_tta_is_along_all_axes(arguments, asked):
    assert main([*arguments, "--tta"]) == 0
    ((_, options),) = asked
    assert options.mirror_axes == (0, 1, 2)


@pytest.mark.parametrize(("given", "steps"), [([], None), (["--refine", "0"], 0), (["--refine", "12"], 12)])
def test_whether_fields_are_refined_is_left_to_the_pair_unless_said(arguments, asked, given, steps):
    assert main([*arguments, *given]) == 0
    ((_, options),) = asked
    assert options.refine_steps == steps


def test_each_process_of_torchrun_does_its_part(arguments, asked, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "RANK": "2", "WORLD_SIZE": "5", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    waited = []
    monkeypatch.setattr(command, "_of_all_processes", lambda failures: waited.append(failures) or failures)
    assert main(arguments) == 0
    ((device, options),) = asked
    assert options.part == (2, 5)
    assert waited == [{}]
    assert device.type == "cpu"
    assert main([*arguments, "--num_parts", "2"]) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--tta", "xx"], "'xx' are no axes; give some of x, y and z"),
        (["--tta", "w"], "'w' are no axes"),
        (["--save", "jacobian,everything"], "there is no output everything; choose from jacobian, folding"),
        (["--save", ","], "there is no output ','"),
        (["--refine", "few"], "invalid int value"),
    ],
)
def test_mistyped_options_are_explained(arguments, capsys, given, message):
    with pytest.raises(SystemExit) as end:
        main([*arguments, *given])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--num_parts", "3", "--part_id", "3"], "there is no part 3 of 3"),
        (["--part_id", "-1"], "there is no part -1 of 1"),
        (["--refine", "-1"], "--refine takes no negative number"),
        (["-npp", "0"], "-npp and -nps take at least 1"),
    ],
)
def test_impossible_numbers_are_refused(arguments, capsys, given, message):
    assert main([*arguments, *given]) == 2
    assert message in capsys.readouterr().err
