from pathlib import Path

from biasreg.cli import demo as command
from biasreg.demo import run as demo_run
from biasreg.demo.run import DemoOptions, DemoResult


def test_the_options_reach_the_demo_and_its_line_is_the_last_of_the_output(monkeypatch, capsys) -> None:
    calls = []

    def run_demo(output, options):
        calls.append((output, options))
        return DemoResult(
            identity_dice=0.1,
            affine_dice=0.2,
            biasreg_dice=0.3,
            folding_percent=0.0,
            num_pairs=8,
            picture=output / "demo.png",
            report=output / "report.html",
        )

    monkeypatch.setattr(demo_run, "run_demo", run_demo)
    assert command.main(["-o", "there", "--epochs", "2", "--seed", "5"]) == 0
    assert calls == [(Path("there"), DemoOptions(seed=5, epochs=2))]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("demo: mean Dice identity 0.100 -> affine 0.200 -> biasreg 0.300 on 8 held-out pairs")


def test_an_earlier_demo_is_not_overwritten(tmp_path, capsys) -> None:
    (tmp_path / "raw").mkdir()
    assert command.main(["-o", str(tmp_path)]) == 2
    assert "error: there is an earlier demo" in capsys.readouterr().err
