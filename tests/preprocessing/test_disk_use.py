import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from biasreg.core.dataset import Case
from biasreg.core.errors import InputError
from biasreg.core.geometry import Geometry
from biasreg.planning.plans import ChannelNormalization, PreprocessingPlans
from biasreg.preprocessing.disk_use import OVERHEAD_BYTES, case_bytes, check_room, in_words
from biasreg.preprocessing.resampling import class_type
from biasreg.preprocessing.storage import StoredCase, write_case


def make_plans(channels=1, labels=2):
    return PreprocessingPlans(
        spacing=(2.0, 2.0, 2.0),
        patch_size=(40, 30, 20),
        modality="MRI",
        normalization=(ChannelNormalization("percentile", 0.5, 99.5),) * channels,
        prealignment="center",
        crop="anatomy",
        reference_case=None,
        label_values=tuple(range(1, labels + 1)),
        label_names=tuple(f"label {value}" for value in range(1, labels + 1)),
    )


def make_case(folder, name, labelled):
    return Case(
        name, name, "MRI", (folder / f"{name}.nii",), folder / f"{name}_seg.nii" if labelled else None, None, None
    )


def write(folder, name, plans, labelled):
    frame = tuple(tuple(map(float, row)) for row in np.eye(4))
    grid = Geometry.centered(plans.patch_size, plans.spacing)
    record = StoredCase(name, name, "MRI", labelled, (1, 2), frame, grid, 0.0, "images:0123456789abcdef")
    labels = np.zeros(plans.patch_size, class_type(len(plans.label_values))) if labelled else None
    image = np.zeros((len(plans.normalization), *plans.patch_size), np.float32)
    write_case(folder, record, image, np.ones(plans.patch_size, bool), labels)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(("channels", "labels"), [(1, 2), (3, 300)])
def test_a_case_takes_what_was_reckoned(channels, labels, labelled, tmp_path):
    plans = make_plans(channels, labels)
    write(tmp_path, "a", plans, labelled)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 0 <= case_bytes(plans, labelled=labelled) - size < OVERHEAD_BYTES


@pytest.fixture
def disk(monkeypatch):
    """Return a function that sets the free bytes of the disk."""

    def set_free(size):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size))

    return set_free


def test_use_and_room_are_stated(disk, tmp_path, caplog):
    disk(5 * 2**30)
    with caplog.at_level(logging.INFO):
        check_room(tmp_path, {name: make_case(tmp_path, name, True) for name in "abcdefghij"}, make_plans())
    assert caplog.messages == ["10 case(s) to preprocess take 977.5 KiB; 5.0 GiB are free"]


def test_cases_that_do_not_fit_are_refused_with_both_values(disk, tmp_path):
    cases = {name: make_case(tmp_path, name, name == "a") for name in "ab"}
    needed = case_bytes(make_plans(), labelled=True) + case_bytes(make_plans(), labelled=False)
    disk(needed)
    check_room(tmp_path, cases, make_plans())
    disk(needed - 1)
    with pytest.raises(
        InputError, match=rf"2 case\(s\) .* need 172\.\d KiB, but 172\.\d KiB are free · .*{tmp_path.name} · "
    ):
        check_room(tmp_path, cases, make_plans())


def test_what_is_replaced_counts_as_room(disk, tmp_path):
    write(tmp_path, "a", make_plans(), True)
    disk(OVERHEAD_BYTES)
    check_room(tmp_path, {"a": make_case(tmp_path, "a", True)}, make_plans())
    with pytest.raises(InputError):
        check_room(tmp_path, {"b": make_case(tmp_path, "b", True)}, make_plans())


def test_nothing_to_do_needs_no_room(disk, tmp_path):
    disk(0)
    check_room(tmp_path, {}, make_plans())


@pytest.mark.parametrize(("size", "words"), [(10, "10 bytes"), (2**20, "1.0 MiB"), (3 * 2**40, "3.0 TiB")])
def test_sizes_are_written_in_a_unit_that_suits_them(size, words):
    assert in_words(size) == words
