from biasreg.cli import extract_fingerprint, plan_experiment
from biasreg.cli.preprocess import main


def test_without_plans_the_command_that_makes_them_is_named(run, capsys):
    run(extract_fingerprint.main)
    assert run(main) == 2
    assert "biasreg_plan_and_preprocess -d 700" in capsys.readouterr().err


def test_plans_are_obeyed_and_what_is_done_is_kept(run, tmp_path, caplog):
    run(extract_fingerprint.main)
    run(plan_experiment.main)
    assert run(main) == 0
    (cases,) = (tmp_path / "preprocessed" / "Dataset700_Tiny").glob("biasregPlans_3d_*")
    times = {path: path.stat().st_mtime_ns for path in cases.iterdir()}
    assert run(main) == 0
    assert "4 of 4 cases are already preprocessed" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in cases.iterdir()} == times
    assert run(main, "--clean") == 0
    assert not set(times.values()) & {path.stat().st_mtime_ns for path in cases.iterdir()}
