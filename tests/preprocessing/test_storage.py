import errno
import json
from dataclasses import replace

import numpy as np
import pytest

from biasreg.core.errors import PlansError
from biasreg.core.geometry import Geometry
from biasreg.planning.plans import ChannelNormalization, PreprocessingPlans
from biasreg.preprocessing import storage
from biasreg.preprocessing.storage import StoredCase

PLANS = PreprocessingPlans(
    (1.0, 1.0, 1.0),
    (4, 4, 4),
    "MRI",
    (ChannelNormalization("percentile", 0.5, 99.5),),
    "center",
    "anatomy",
    None,
    (1,),
    ("a",),
)
FRAME = tuple(tuple(float(value) for value in row) for row in np.eye(4))
RECORD = StoredCase("c", "c", "MRI", True, (1,), FRAME, Geometry.centered((4, 4, 4), (1.0, 1.0, 1.0)), 0.0, "hash")


def test_a_stored_case_comes_back(tmp_path):
    image = np.random.default_rng(0).random((1, 4, 4, 4)).astype(np.float32)
    labels = np.ones((4, 4, 4), np.uint8)
    storage.write_case(tmp_path, RECORD, image, labels > 0, labels)
    assert storage.read_stored_case(tmp_path, "c", "make it") == RECORD
    np.testing.assert_allclose(storage.load_image(tmp_path, "c"), image, atol=1e-3)
    assert (storage.load_labels(tmp_path, "c") == 1).all()
    assert (storage.load_mask(tmp_path, "c") == 1).all()


def test_a_case_without_labels_gives_background(tmp_path):
    storage.write_case(tmp_path, RECORD, np.zeros((1, 4, 4, 4)), np.ones((4, 4, 4), bool), None)
    assert not storage.load_labels(tmp_path, "c").any()


def test_a_folder_made_with_other_plans_is_refused_with_the_command(tmp_path):
    with pytest.raises(PlansError, match=r"no preprocessed cases.*make it"):
        storage.check_stamp(tmp_path, PLANS, "make it")
    storage.write_stamp(tmp_path, PLANS)
    storage.check_stamp(tmp_path, PLANS, "make it")
    other = PreprocessingPlans(
        (2.0, 1.0, 1.0), (4, 4, 4), "MRI", PLANS.normalization, "center", "anatomy", None, (1,), ("a",)
    )
    with pytest.raises(PlansError, match=r"other plans.*make it"):
        storage.check_stamp(tmp_path, other, "make it")
    with pytest.raises(PlansError, match=r"case d is not preprocessed.* · make it"):
        storage.read_stored_case(tmp_path, "d", "make it")


@pytest.fixture
def write(tmp_path):
    """Return a function that stores the case, and its folder's file names and contents."""
    storage.write_stamp(tmp_path, PLANS)

    def write(value=0.5, labels=True):
        array = np.full((4, 4, 4), value)
        classes = np.ones(array.shape, np.uint8) if labels else None
        storage.write_case(tmp_path, replace(RECORD, annotated=labels), array[None], array > 0, classes)
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    return write


def test_labels_of_an_earlier_run_do_not_survive_a_case_without_labels(write, tmp_path):
    assert "c_seg.npy" in write()
    assert "c_seg.npy" not in write(labels=False)
    assert not storage.load_labels(tmp_path, "c").any()


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_full_disk_leaves_no_half_file_and_no_record(failing, write, tmp_path, monkeypatch):
    before = write()
    save, calls = np.save, []

    def run_full(file, array):
        calls.append(array)
        if len(calls) == failing:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(file, array)

    monkeypatch.setattr(np, "save", run_full)
    with pytest.raises(OSError, match="No space left"):
        write(value=0.25)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == set(before) - {"c.json"}
    assert storage.find_stored_case(tmp_path, "c") is None
    for name in names - {"preprocessing.json"}:
        np.load(tmp_path / name)


@pytest.mark.parametrize("name", ["c.npy", "c_mask.npy", "c_seg.npy", "c.json"])
def test_a_case_is_complete_with_all_of_its_files(name, write, tmp_path):
    write()
    assert storage.find_stored_case(tmp_path, "c") == RECORD
    (tmp_path / name).unlink()
    assert storage.find_stored_case(tmp_path, "c") is None


ARRAYS = ("c.npy", "c_mask.npy", "c_seg.npy")


def cut_a_byte(path):
    path.write_bytes(path.read_bytes()[:-1])


def cut_the_header(path):
    path.write_bytes(path.read_bytes()[:40])


def empty(path):
    path.write_bytes(b"")


def overwrite(path):
    path.write_bytes(b"\x00" * path.stat().st_size)


@pytest.mark.parametrize("damage", [cut_a_byte, cut_the_header, empty, overwrite])
@pytest.mark.parametrize("name", ARRAYS)
def test_a_damaged_array_makes_a_case_incomplete_and_is_named(name, damage, write, tmp_path):
    write()
    assert storage.damaged_arrays(tmp_path, "c") == ()
    damage(tmp_path / name)
    assert storage.damaged_arrays(tmp_path, "c") == (tmp_path / name,)
    assert storage.find_stored_case(tmp_path, "c") is None
    with pytest.raises(PlansError, match=rf"array is cut off or damaged .* · .*{name} · make it"):
        storage.read_stored_case(tmp_path, "c", "make it")
    load = dict(zip(ARRAYS, (storage.load_image, storage.load_mask, storage.load_labels), strict=True))[name]
    with pytest.raises(PlansError, match=rf"cut off or damaged .*{name} · run `biasreg_preprocess`"):
        load(tmp_path, "c")


def test_looking_for_damage_reads_no_values(write, tmp_path, monkeypatch):
    write()
    (tmp_path / "c.npy").unlink()
    huge = np.lib.format.open_memmap(tmp_path / "c.npy", "w+", np.float16, (1, 10_000, 1_000, 1_000))  # a sparse file
    del huge
    assert storage.find_stored_case(tmp_path, "c") == RECORD


@pytest.mark.parametrize("name", ARRAYS)
def test_a_case_that_lacks_an_array_is_refused_with_the_remedy(name, write, tmp_path):
    write()
    (tmp_path / name).unlink()
    with pytest.raises(PlansError, match=rf"array cannot be read: No such file .* · .*{name} · make it"):
        storage.read_stored_case(tmp_path, "c", "make it")


def test_a_damaged_record_or_one_of_another_version_is_no_case(write, tmp_path):
    write()
    (tmp_path / "c.json").write_text('{"identifier": "c"}')
    assert storage.find_stored_case(tmp_path, "c") is None
    (tmp_path / "c.json").write_text('{"identi')
    assert storage.find_stored_case(tmp_path, "c") is None


def test_cases_of_an_earlier_layout_are_made_anew(tmp_path):
    storage.write_stamp(tmp_path, PLANS)
    assert storage.is_stamped(tmp_path, PLANS)
    stamp = tmp_path / storage.STAMP_FILE
    written = json.loads(stamp.read_text())
    stamp.write_text(json.dumps({key: value for key, value in written.items() if key != "layout"}))
    assert not storage.is_stamped(tmp_path, PLANS)
    with pytest.raises(PlansError, match="other plans, or by an earlier version"):
        storage.check_stamp(tmp_path, PLANS, "run it again")


def test_a_folder_is_stamped_for_its_reference_image_too(tmp_path):
    assert not storage.is_stamped(tmp_path, PLANS)
    storage.write_stamp(tmp_path, PLANS, "hash of the reference")
    assert storage.is_stamped(tmp_path, PLANS)
    assert storage.is_stamped(tmp_path, PLANS, "hash of the reference")
    assert not storage.is_stamped(tmp_path, PLANS, "hash of another")
    storage.check_stamp(tmp_path, PLANS, "make it")


def test_clearing_removes_what_was_made_here_and_nothing_else(write, tmp_path):
    write()
    (tmp_path / "reference.nii.gz").touch()
    (tmp_path / ".1234-c.npy").touch()  # what a kill left behind
    (tmp_path / "notes.txt").touch()
    storage.clear_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_of_somebody_else_is_not_cleared(tmp_path):
    storage.clear_folder(tmp_path / "missing")
    storage.clear_folder(tmp_path)
    (tmp_path / "thesis.npy").touch()
    with pytest.raises(PlansError, match=r"not made here.*move it away"):
        storage.clear_folder(tmp_path)
    assert (tmp_path / "thesis.npy").is_file()
