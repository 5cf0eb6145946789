import json
import subprocess
import sys

import pytest

from biasreg.cli.plan_and_preprocess import main


def test_one_command_verifies_states_facts_decides_and_preprocesses(run, tmp_path, capsys):
    assert run(main) == 0
    folder = tmp_path / "preprocessed" / "Dataset700_Tiny"
    assert json.loads((folder / "biasregPlans.json").read_text())["device"] == "cpu"
    (cases,) = folder.glob("biasregPlans_3d_*")
    assert len(list(cases.glob("c?.npy"))) == 4
    assert capsys.readouterr().out == ""


def test_the_name_of_the_plans_is_the_users(run, tmp_path):
    assert run(main, "-p", "mine") == 0
    folder = tmp_path / "preprocessed" / "Dataset700_Tiny"
    assert (folder / "mine.json").is_file()
    assert list(folder.glob("mine_3d_*"))


def test_a_fault_of_the_dataset_ends_with_code_2_and_leaves_nothing(run, tiny_dataset, tmp_path, capsys):
    (tiny_dataset / "labelsTr" / "c1.nii.gz").write_bytes(b"broken")
    assert run(main) == 2
    assert "c1.nii.gz" in capsys.readouterr().err
    assert not (tmp_path / "preprocessed").exists()


def test_a_folder_that_cannot_be_written_to_ends_with_code_2_and_one_line(run, monkeypatch, capsys):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    assert run(main) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: nothing can be written to ")
    assert line.endswith(" · get the permission, or give another root with --preprocessed")


@pytest.mark.parametrize("command", ["plan_and_preprocess", "extract_fingerprint", "plan_experiment", "preprocess"])
def test_help_comes_without_torch(command):
    code = (
        f"import sys\nfrom biasreg.cli.{command} import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'SimpleITK'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for option in (
        "-d",
        "-p",
        "-gpu_memory_target",
        "-np",
        "--dask",
        "--clean",
        "--no-verify_dataset_integrity",
        "--raw",
    ):
        assert option in result.stdout
