import platform
from pathlib import Path

import torch

import biasreg
from biasreg.core.pairs import PairFiles
from biasreg.core.serialization import file_hash
from biasreg.inference.models import ModelRequest, find_model
from biasreg.inference.record import InputFile, describe_inputs, describe_run


def test_a_run_is_described_by_its_checkpoints_device_and_versions(write_model):
    folder = write_model(folds=("0", "1"))
    provenance = describe_run(find_model(folder.parents[1], ModelRequest()), torch.device("cpu"))
    assert provenance.model == "Dataset901_Blobs/tiny__main (fold_0, fold_1)"
    assert provenance.checkpoints == {
        name: file_hash(folder / name) for name in ("fold_0/checkpoint_best.pth", "fold_1/checkpoint_best.pth")
    }
    assert provenance.device == "cpu"
    assert provenance.versions["biasreg"] == biasreg.__version__
    assert provenance.versions["python"] == platform.python_version()


def test_voxels_in_a_file_of_their_own_are_inputs(tmp_path):
    for name in ("m", "f"):
        (tmp_path / f"{name}.mhd").write_text(f"ObjectType = Image\nElementDataFile = {name}.raw\n")
        (tmp_path / f"{name}.raw").write_text(name)
    pair = PairFiles("a", (tmp_path / "m.mhd",), (tmp_path / "f.mhd",), None, None, None, None)
    inputs = describe_inputs(pair)
    assert [(file.role, Path(file.path).name) for file in inputs] == [
        ("moving", "m.mhd"),
        ("moving", "m.raw"),
        ("fixed", "f.mhd"),
        ("fixed", "f.raw"),
    ]
    assert inputs[3].sha256 == file_hash(tmp_path / "f.raw")


def test_inputs_are_told_apart_by_role_and_channel(tmp_path):
    paths = [tmp_path / name for name in ("m0", "m1", "f", "s")]
    for path in paths:
        path.write_text(path.name)
    pair = PairFiles("a", tuple(paths[:2]), (paths[2], paths[0]), paths[3], None, None, None)
    inputs = describe_inputs(pair)
    assert [(file.role, Path(file.path).name) for file in inputs] == [
        ("moving", "m0"),
        ("moving", "m1"),
        ("fixed", "f"),
        ("fixed", "m0"),
        ("moving_seg", "s"),
    ]
    assert inputs[0] == InputFile("moving", str(paths[0]), file_hash(paths[0]))
