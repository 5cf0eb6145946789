import shlex
import subprocess
import sys

import pytest
from torch import nn

from biasreg.cli import extract_fingerprint, plan_experiment, predict
from biasreg.cli.find_best_configuration import main
from biasreg.core.serialization import from_json, read_json, write_json, write_record
from biasreg.inference import models
from biasreg.network.checkpoint import LATEST, Identity, RunSettings, capture, save_checkpoint
from biasreg.planning.plans import Configuration
from biasreg.training.validation import PairScore, ValidationResult


@pytest.fixture
def write_fold(run, tmp_path):
    """Return a function that writes a trained fold of the planned dataset."""
    for step in (extract_fingerprint, plan_experiment):
        assert run(step.main) == 0
    plans = read_json(tmp_path / "preprocessed" / "Dataset700_Tiny" / "biasregPlans.json")
    name = plans["default_configuration"]
    configuration = from_json(Configuration, plans["configurations"][name])

    def write(fold, dice):
        folder = tmp_path / "results" / "Dataset700_Tiny" / f"biasregPlans__{name}" / f"fold_{fold}"
        folder.mkdir(parents=True)
        write_json(folder.parent / "plans.json", plans)
        settings = RunSettings(fold, 1, 1, 0, "hash")
        identity = Identity("Dataset700_Tiny", "biasregPlans", name, configuration, None, settings)
        checkpoint = capture(identity, {"history": [{}], "best": {}}, nn.Linear(1, 1), None)
        save_checkpoint(folder / LATEST, checkpoint)
        scores = (PairScore("c0", "c1", 0.5, dice, 0.0, 0.3),)
        write_record(folder / "validation.json", ValidationResult(1, "both", scores))
        return name

    return write


def test_help_comes_without_torch():
    code = (
        "import sys\nfrom biasreg.cli.find_best_configuration import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--ablations" in result.stdout


def test_the_table_and_a_command_that_predict_understands_are_printed(write_fold, flags, tmp_path, capsys, monkeypatch):
    for fold, dice in ((0, 0.7), (1, 0.8)):
        name = write_fold(fold, dice)
    capsys.readouterr()
    assert main(["700", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("model")
    assert lines[1].startswith(f"biasregPlans__{name}")
    assert (tmp_path / "results" / "Dataset700_Tiny" / "best_configuration.json").is_file()

    asked = {}
    monkeypatch.setattr(models, "find_model", lambda results, request: asked.update(results=results, request=request))
    monkeypatch.setattr("biasreg.inference.predict.predict_pairs", lambda *arguments: {})
    command, *arguments = shlex.split(lines[-1])
    assert command == "biasreg_predict"
    assert predict.main([*arguments, "--device", "cpu"]) == 0
    assert asked["results"] == tmp_path / "results"
    assert asked["request"] == models.ModelRequest("Dataset700_Tiny", "biasregPlans", name, ("0", "1"))


def test_without_a_trained_model_it_ends_with_code_2_and_the_command_to_train(flags, tmp_path, capsys):
    (tmp_path / "results").mkdir()
    assert main(["700", *flags]) == 2
    assert "`biasreg_train 700 0`" in capsys.readouterr().err
