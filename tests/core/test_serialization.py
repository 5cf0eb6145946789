import errno
import hashlib
import os
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biasreg.core.errors import RecordError
from biasreg.core.geometry import Geometry
from biasreg.core.serialization import (
    atomic_write,
    content_hash,
    file_hash,
    from_json,
    read_json,
    read_record,
    to_json,
    write_json,
    write_record,
)


@dataclass(frozen=True)
class Inner:
    epochs: int
    rate: float


@dataclass(frozen=True)
class Outer:
    training: Inner
    name: str
    kind: Literal["a", "b"]
    flag: bool
    size: tuple[int, int, int]
    parts: tuple[Inner, ...]
    values: list[float]
    table: dict[str, Inner]
    note: str | None
    mixed: int | str
    maybe: Inner | None = None
    labels: dict[str, int] = field(default_factory=dict)


inner = st.builds(Inner, st.integers(), st.floats(allow_nan=False, allow_infinity=False))
outer = st.builds(
    Outer,
    training=inner,
    name=st.text(),
    kind=st.sampled_from(["a", "b"]),
    flag=st.booleans(),
    size=st.tuples(st.integers(), st.integers(), st.integers()),
    parts=st.lists(inner, max_size=3).map(tuple),
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    table=st.dictionaries(st.text(), inner, max_size=3),
    note=st.none() | st.text(),
    mixed=st.integers() | st.text(),
    maybe=st.none() | inner,
    labels=st.dictionaries(st.text(), st.integers(), max_size=3),
)

EXAMPLE = Outer(
    Inner(3, 0.5), "name", "a", True, (1, 2, 3), (Inner(1, 1.0),), [0.1], {"k": Inner(2, 2.0)}, None, "x", None, {}
)


@settings(max_examples=60, deadline=None)
@given(record=outer)
def test_records_survive_the_round_trip_through_a_file_exactly(record, tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "record.json"
    write_record(path, record)
    assert read_record(path, Outer) == record
    assert content_hash(read_record(path, Outer)) == content_hash(record)


def test_text_that_is_no_utf8_survives(tmp_path):
    write_json(tmp_path / "a.json", {"file": "b\udc80", "name": "Müller"})
    assert read_json(tmp_path / "a.json") == {"file": "b\udc80", "name": "Müller"}
    assert "Müller".encode() in (tmp_path / "a.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"epochs": "x", "rate": 1.0}}, 'plans.json: training.epochs: expected a whole number, got "x"'),
        ({"training": {"epochs": True, "rate": 1.0}}, "plans.json: training.epochs: expected a whole number, got true"),
        ({"training": {"epochs": 1.0, "rate": 1.0}}, "plans.json: training.epochs: expected a whole number, got 1.0"),
        ({"training": {"epochs": 1, "rate": float("nan")}}, "training.rate: expected a finite number, got nan"),
        (
            {"training": {"epochs": 1, "rate": 10**400}},
            "training.rate: expected a finite number, got one beyond its range",
        ),
        ({"training": {"epochs": 1}}, "training.rate: this field is missing"),
        ({"training": {"epochs": 1, "rate": 1.0, "z": 0}}, r"training.z: unknown field.*known: epochs, rate"),
        ({"training": [1, 2]}, r"training: expected an object with the fields epochs, rate, got \[1, 2\]$"),
        ({"size": [1, 2]}, "size: expected 3 values, got 2"),
        ({"size": [1, 2, "3"]}, r'size\[2\]: expected a whole number, got "3"'),
        ({"parts": [{"epochs": 1, "rate": "q"}]}, r'parts\[0\].rate: expected a number, got "q"'),
        ({"values": 1.0}, "values: expected a list, got 1.0"),
        ({"kind": "c"}, 'kind: expected one of "a", "b", got "c"'),
        ({"note": 3}, "note: expected text, got 3"),
        ({"mixed": 1.5}, "mixed: expected a whole number or text, got 1.5"),
        ({"maybe": {"epochs": None, "rate": 1.0}}, "maybe.epochs: expected a whole number, got null"),
        ({"table": {"k": 1}}, "table.k: expected an object"),
        ({"table": []}, "table: expected an object, got"),
    ],
)
def test_every_misfit_is_refused_with_the_path_of_its_field(change, message):
    with pytest.raises(RecordError, match=message):
        from_json(Outer, {**to_json(EXAMPLE), **change}, where="plans.json")


def test_all_misfits_of_a_record_are_reported_together():
    change = {"kind": "c", "size": [1, "2", None], "labels": {"left": "1", "right": 2.5}, "q": 1}
    data = {**to_json(EXAMPLE), **change}
    del data["note"]
    with pytest.raises(RecordError) as error:
        from_json(Outer, data, where="plans.json")
    first, *faults = str(error.value).splitlines()
    assert first == "plans.json: 7 faults:"
    paths = [line.removeprefix("  - ").partition(": ")[0] for line in faults]
    assert sorted(paths) == ["kind", "labels.left", "labels.right", "note", "q", "size[1]", "size[2]"]


def test_fields_with_defaults_may_be_left_out():
    data = to_json(EXAMPLE)
    del data["maybe"], data["labels"]
    assert from_json(Outer, data) == EXAMPLE


def test_an_int_is_accepted_where_a_float_is_meant():
    assert from_json(Inner, {"epochs": 1, "rate": 2}) == Inner(1, 2.0)


def test_a_record_that_refuses_its_values_is_reported_with_the_field():
    data = to_json(Geometry.centered((2, 2, 2), (1.0, 1.0, 1.0)))
    data["spacing"] = [1.0, 0.0, 1.0]
    with pytest.raises(RecordError, match=r"frames: a: voxel sizes must be finite and positive"):
        from_json(dict[str, Geometry], {"a": data}, where="frames")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), {1: 2}, {"a": object()}, {1, 2}])
def test_what_has_no_json_form_is_not_written(value, tmp_path):
    with pytest.raises(RecordError):
        write_json(tmp_path / "a.json", {"value": value})
    assert list(tmp_path.iterdir()) == []


def test_numpy_numbers_are_written_as_numbers():
    assert to_json({"a": np.float64(0.5), "b": np.int32(3), "c": np.bool_(True)}) == {"a": 0.5, "b": 3, "c": True}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": NaN}', "expected finite numbers, got NaN"),
        ('{"a": -Infinity}', "expected finite numbers, got -Infinity"),
        ('{"a": 1e999}', "expected finite numbers, got 1e999"),
        ('{"a": 1, "a": 2}', '"a" stands twice'),
        ('{"a": 1\n"b": 2}', "line 2, column 1"),
        ("", "not valid JSON"),
    ],
)
def test_files_that_are_no_strict_json_are_refused(text, message, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RecordError, match=message) as error:
        read_json(tmp_path / "a.json")
    assert "a.json" in str(error.value)


def test_missing_unreadable_and_undecodable_files_are_named(tmp_path):
    with pytest.raises(RecordError, match=r"none\.json: there is no such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(RecordError, match="cannot be read"):
        read_json(tmp_path)
    (tmp_path / "a.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(RecordError, match=r"a\.json: cannot be read"):
        read_json(tmp_path / "a.json")


def test_hash_follows_the_content_and_not_the_order_of_keys():
    assert content_hash({"a": 1, "b": [2.0]}) == content_hash({"b": [2.0], "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 2})
    assert content_hash({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()


def test_file_hash_is_sha256_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    assert file_hash(tmp_path / "a") == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": True})

    def full(descriptor: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"old": False})
    assert read_json(path) == {"old": True}
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_an_interrupted_write_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "new" / "a.bin") as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert list((tmp_path / "new").iterdir()) == []


def test_the_temporary_file_keeps_folder_and_ending(tmp_path):
    with atomic_write(tmp_path / "a.nii.gz") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"whole")
    assert (tmp_path / "a.nii.gz").read_bytes() == b"whole"
