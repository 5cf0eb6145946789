from dataclasses import replace

import pytest

from biasreg.core.serialization import read_record, write_record
from biasreg.inference.prediction import FieldQuality, InverseError
from biasreg.inference.record import InputFile, PredictionRecord, Provenance, Settings
from biasreg.inference.staging import read_earlier_record, record_path, staged
from biasreg.inference.trust import Trust

RECORD = PredictionRecord(
    pair="a",
    written="2026-01-01T00:00:00+00:00",
    provenance=Provenance("model", {"fold_0/checkpoint_best.pth": "0"}, "cpu", {"biasreg": "1"}),
    inputs=(InputFile("moving", "a.nii.gz", "1"), InputFile("fixed", "b.nii.gz", "2")),
    settings=Settings(),
    outputs=("a_warp.nii.gz", "a_warped.nii.gz"),
    prealignment="affine",
    seconds={"total": 1.0},
    quality=FieldQuality(0.0, None, InverseError(0.0, 0.0, 0.0)),
    trust=Trust("PASS", ()),
    accuracy=None,
    notices=(),
)


def register(folder, outputs, text):
    with staged(folder, "a") as hidden:
        for name in outputs:
            (hidden / name).write_text(text)
        write_record(record_path(hidden, "a"), replace(RECORD, outputs=tuple(outputs)))


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_files_appear_when_the_pair_is_complete(tmp_path):
    with staged(tmp_path, "a") as hidden:
        (hidden / "a_warp.nii.gz").touch()
        write_record(record_path(hidden, "a"), RECORD)
        assert names(tmp_path) == {".a.partial"}
    assert names(tmp_path) == {"a_warp.nii.gz", "a.json"}
    assert read_earlier_record(tmp_path, "a") == RECORD


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_pair_that_fails_leaves_nothing(tmp_path, error):
    def fail():
        with staged(tmp_path, "a") as hidden:
            (hidden / "a_warp.nii.gz").touch()
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == set()


def test_a_pair_that_fails_keeps_the_files_of_before(tmp_path):
    register(tmp_path, ["a_warp.nii.gz"], "before")

    def fail():
        with staged(tmp_path, "a") as hidden:
            (hidden / "a_warp.nii.gz").write_text("after")
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        fail()
    assert (tmp_path / "a_warp.nii.gz").read_text() == "before"
    assert read_earlier_record(tmp_path, "a") is not None


def test_files_of_before_that_are_not_made_again_go(tmp_path):
    register(tmp_path, ["a_warp.nii.gz", "a_jacobian.nii.gz"], "before")
    (tmp_path / "a_note.txt").touch()
    register(tmp_path, ["a_warp.nii.gz"], "after")
    assert names(tmp_path) == {"a_warp.nii.gz", "a.json", "a_note.txt"}
    assert (tmp_path / "a_warp.nii.gz").read_text() == "after"


def test_a_record_never_removes_files_of_others(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "b_warp.nii.gz").touch()
    (tmp_path / "a_precious").touch()
    write_record(record_path(folder, "a"), replace(RECORD, outputs=("b_warp.nii.gz", "../a_precious")))
    register(folder, [], "")
    assert (folder / "b_warp.nii.gz").is_file()
    assert (tmp_path / "a_precious").is_file()


def test_what_a_killed_run_left_is_not_taken_over(tmp_path):
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".a.partial" / "a_jacobian.nii.gz").touch()
    register(tmp_path, ["a_warp.nii.gz"], "")
    assert names(tmp_path) == {"a_warp.nii.gz", "a.json"}


def test_a_record_that_cannot_be_read_is_none(tmp_path):
    assert read_earlier_record(tmp_path, "a") is None
    record_path(tmp_path, "a").write_text('{"pair": "a"}')
    assert read_earlier_record(tmp_path, "a") is None


def test_a_record_comes_back_as_it_was(tmp_path):
    write_record(tmp_path / "a.json", RECORD)
    assert read_record(tmp_path / "a.json", PredictionRecord) == RECORD
