import json

from biasreg.cli.extract_fingerprint import main


def test_only_the_facts_are_written_and_kept(run, tmp_path, caplog):
    assert run(main) == 0
    folder = tmp_path / "preprocessed" / "Dataset700_Tiny"
    assert {path.name for path in folder.iterdir()} == {"dataset_fingerprint.json", "dataset_fingerprint_cache"}
    first = (folder / "dataset_fingerprint.json").read_bytes()
    assert len(json.loads(first)["cases"]) == 4
    assert run(main) == 0
    assert "fingerprint kept" in caplog.text
    caplog.clear()
    assert run(main, "--clean") == 0
    assert "fingerprint kept" not in caplog.text
    assert (folder / "dataset_fingerprint.json").read_bytes() == first


def test_verification_can_be_left_out(run, tiny_dataset, capsys):
    labels = tiny_dataset / "labelsTr" / "orphan.nii.gz"
    labels.write_bytes((tiny_dataset / "labelsTr" / "c1.nii.gz").read_bytes())
    assert run(main) == 2
    assert "orphan" in capsys.readouterr().err
    assert run(main, "--no-verify_dataset_integrity") == 0
