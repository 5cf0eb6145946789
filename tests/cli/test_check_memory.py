import json

from biasreg.cli import extract_fingerprint, plan_experiment
from biasreg.cli.check_memory import main


def test_predicted_memory_is_printed_beside_what_a_step_takes(run, tmp_path, capsys):
    roots = [f"--{name}={tmp_path / name}" for name in ("raw", "preprocessed", "results")]
    check = ["-d", "700", "--device", "cpu", *roots]
    assert main(check) == 2
    run(extract_fingerprint.main)
    assert main(check) == 2
    assert "biasreg_plan_and_preprocess -d 700" in capsys.readouterr().err
    run(plan_experiment.main)
    plans = json.loads((tmp_path / "preprocessed" / "Dataset700_Tiny" / "biasregPlans.json").read_text())
    capsys.readouterr()
    assert main([*check, "-c", plans["default_configuration"]]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{plans['default_configuration']} (")
    assert "GiB predicted" in line
    assert "GiB measured (" in line
    assert main([*check, "-c", "other"]) == 2
