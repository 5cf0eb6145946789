import os
import subprocess
import sys

import pytest

from biasreg.cli.train import main


def test_help_comes_without_torch():
    code = (
        "import sys\nfrom biasreg.cli.train import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for option in ("dataset", "fold", "--c", "--overwrite", "--epochs", "-device", "--num_workers", "--results"):
        assert option in result.stdout


@pytest.mark.parametrize("arguments", [["901"], ["901", "first"], ["901", "-1"], ["901", "0", "--con"]])
def test_wrong_arguments_end_with_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_missing_data_end_with_code_2_and_the_command_to_run(tmp_path, capsys):
    roots = [f"--{root}={tmp_path / root}" for root in ("raw", "preprocessed", "results")]
    (tmp_path / "preprocessed").mkdir()
    assert main(["901", "0", *roots]) == 2
    assert "biasreg_plan_and_preprocess -d 901" in capsys.readouterr().err


def test_determinism_is_prepared_before_cuda_starts(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    roots = [f"--{root}={tmp_path / root}" for root in ("raw", "preprocessed", "results")]
    assert main(["901", "0", "--deterministic", *roots]) == 2
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
