import contextlib
import itertools
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from biasreg.core.errors import TrainingError
from biasreg.training.data import CaseSource, LoaderSettings, make_batch, open_batches, to_device
from biasreg.training.sampling import PairSampler


@pytest.fixture
def source(write_dataset):
    roots = write_dataset(cases=6)
    return CaseSource(
        roots.preprocessed / "Dataset901_Blobs" / "tiny_main", {f"case{index}": index != 5 for index in range(6)}
    )


@pytest.fixture
def sampler():
    return PairSampler({f"case{index}": str(index) for index in range(6)}, "inter-subject")


def take(source, sampler, count, *, workers, start=0, seed=1):
    with open_batches(source, sampler, LoaderSettings(2, seed, 0.5, workers), start) as batches:
        return list(itertools.islice(batches, count))


def assert_same(first, second):
    assert first.pairs == second.pairs
    for name, ours, theirs in zip(first._fields, first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_the_number_of_workers(source, sampler, workers):
    for ours, theirs in zip(
        take(source, sampler, 5, workers=0), take(source, sampler, 5, workers=workers), strict=True
    ):
        assert_same(ours, theirs)


def test_batches_do_not_depend_on_where_the_stream_began(source, sampler):
    whole = take(source, sampler, 6, workers=0)
    for ours, theirs in zip(whole[3:], take(source, sampler, 3, workers=2, start=3), strict=True):
        assert_same(ours, theirs)


def test_seeds_and_batches_differ(source, sampler):
    first, second = take(source, sampler, 2, workers=0)
    assert not np.array_equal(first.moving, second.moving)
    assert not np.array_equal(first.moving, take(source, sampler, 1, workers=0, seed=2)[0].moving)


def test_images_stay_in_range_and_labels_are_untouched(source, sampler):
    batch = make_batch(source, sampler, LoaderSettings(4, 0, 1.0, 0), 0)
    assert batch.moving.dtype == batch.fixed.dtype == np.float32
    assert batch.moving.shape == (4, 1, 16, 16, 16)
    assert 0 <= batch.moving.min() < batch.moving.max() <= 1
    for (moving, fixed), labels, fixed_labels in zip(batch.pairs, batch.moving_labels, batch.fixed_labels, strict=True):
        np.testing.assert_array_equal(labels, source.labels(moving))
        np.testing.assert_array_equal(fixed_labels, source.labels(fixed))


def test_moving_and_fixed_are_augmented_independently(source):
    source = CaseSource(source.folder, source.annotated)
    sampler = PairSampler({"case0": "a", "case1": "b"}, "inter-subject")
    batch = make_batch(source, sampler, LoaderSettings(1, 0, 1.0, 0), 0)
    moving, fixed = batch.pairs[0]
    change = batch.moving[0] - source.image(moving), batch.fixed[0] - source.image(fixed)
    assert abs(change[0]).max() > 0.01
    assert abs(np.corrcoef(change[0].ravel(), change[1].ravel())[0, 1]) < 0.9
    assert abs(change[0].mean() - change[1].mean()) > 1e-4


def test_no_augmentation_gives_the_stored_images(source, sampler):
    batch = make_batch(source, sampler, LoaderSettings(1, 0, 0.0, 0), 0)
    np.testing.assert_array_equal(batch.moving[0], source.image(batch.pairs[0][0]))


def test_global_random_states_are_left_alone(source, sampler):
    np.random.seed(5)
    random.seed(5)
    make_batch(source, sampler, LoaderSettings(1, 0, 1.0, 0), 0)
    after = np.random.random(), random.random()
    np.random.seed(5)
    random.seed(5)
    assert after == (np.random.random(), random.random())


def test_annotation_follows_the_case(source):
    sampler = PairSampler({"case4": "a", "case5": "b"}, "inter-subject")
    batch = make_batch(source, sampler, LoaderSettings(8, 0, 0.0, 0), 0)
    assert batch.moving_annotated.tolist() == [moving != "case5" for moving, _ in batch.pairs]
    on_device = to_device(batch, torch.device("cpu"))
    assert on_device.moving_labels.dtype == torch.int64
    assert on_device.fixed_annotated.dtype == torch.bool


def test_the_stream_pickles(source, sampler):
    assert pickle.loads(pickle.dumps((source, sampler)))[1].draw(np.random.default_rng(0)) == sampler.draw(
        np.random.default_rng(0)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_case_that_cannot_be_read_stops_training_by_name(source, sampler, workers):
    for index in range(6):
        (source.folder / f"case{index}.npy").unlink()
    with pytest.raises(TrainingError, match=r"case\d\.npy"):
        take(source, sampler, 1, workers=workers)
    assert multiprocessing.active_children() == []


def test_workers_end_with_the_context_even_on_an_error(source, sampler):
    with (
        contextlib.suppress(ZeroDivisionError),
        open_batches(source, sampler, LoaderSettings(1, 0, 0.5, 2), 0) as batches,
    ):
        next(batches)
        assert len(multiprocessing.active_children()) == 2
        raise ZeroDivisionError
    assert multiprocessing.active_children() == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_dies_stops_training(source, sampler):
    with open_batches(source, sampler, LoaderSettings(1, 0, 0.5, 1), 0) as batches:
        next(batches)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        with pytest.raises(TrainingError, match="worker"):
            list(itertools.islice(batches, 50))


def test_ctrl_c_does_not_reach_the_workers(source, sampler):
    with open_batches(source, sampler, LoaderSettings(1, 0, 0.5, 1), 0) as batches:
        next(batches)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGINT)
        for _ in range(10):
            next(batches)


ORPHANS = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from biasreg.training.data import CaseSource, LoaderSettings, open_batches
from biasreg.training.sampling import PairSampler
names = ["case0", "case1"]
source = CaseSource(Path(sys.argv[1]), {name: True for name in names})
sampler = PairSampler({name: name for name in names}, "inter-subject")
with open_batches(source, sampler, LoaderSettings(1, 0, 0.5, 2), 0) as batches:
    next(batches)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for the processes in /proc")
def test_workers_do_not_outlive_a_killed_training_process(source):
    with subprocess.Popen([sys.executable, "-c", ORPHANS, source.folder], stdout=subprocess.PIPE, text=True) as process:
        workers = [int(text) for text in process.stdout.readline().split()]
        assert len(workers) == 2
        process.kill()
    deadline = time.monotonic() + 20
    while any(is_running(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(is_running(worker) for worker in workers)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
