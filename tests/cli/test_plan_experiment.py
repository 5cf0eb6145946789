import json

import pytest

from biasreg.cli import extract_fingerprint
from biasreg.cli.plan_experiment import main


def test_without_facts_the_command_that_states_them_is_named(run, capsys):
    assert run(main) == 2
    assert "biasreg_extract_fingerprint -d 700" in capsys.readouterr().err


@pytest.mark.parametrize(("memory", "device"), [("0", "cpu"), ("24", "cuda")])
def test_plans_are_made_for_the_memory_that_is_given(memory, device, run, tmp_path):
    run(extract_fingerprint.main)
    assert run(main, "-gpu_memory_target", memory) == 0
    plans = json.loads((tmp_path / "preprocessed" / "Dataset700_Tiny" / "biasregPlans.json").read_text())
    assert plans["device"] == device
    assert device == "cpu" or plans["memory_gib"] == 24


@pytest.mark.parametrize("name", ["../outside", "a/b", "", "splits_final", "dataset"])
def test_names_that_cannot_name_files_are_refused(name, run, capsys):
    run(extract_fingerprint.main)
    assert run(main, f"-p={name}") == 2
    assert "cannot be the name of plans" in capsys.readouterr().err


def test_values_and_the_spacing_can_be_set_and_what_cannot_is_refused(run, tmp_path, capsys):
    run(extract_fingerprint.main)
    path = tmp_path / "preprocessed" / "Dataset700_Tiny" / "mine.json"
    spacing = ("-overwrite_target_spacing", "4", "5", "6")
    assert run(main, "-p", "mine", "--set", "training.epochs=7", "--set", "training.batch_size=2", *spacing) == 0
    plans = json.loads(path.read_text())
    made = plans["configurations"][plans["default_configuration"]]
    assert (made["training"]["epochs"], made["training"]["batch_size"]) == (7, 2)
    assert made["preprocessing"]["spacing"] == [4.0, 5.0, 6.0]
    assert plans["why"][plans["default_configuration"]]["training.epochs"] == "set by the user"
    before = path.read_bytes()
    assert run(main, "-p", "mine", "--set", "training.epoch=7") == 2
    assert "there is no field training.epoch" in capsys.readouterr().err
    assert run(main, "-p", "mine", "-overwrite_target_spacing", "4", "0", "6") == 2
    assert path.read_bytes() == before
