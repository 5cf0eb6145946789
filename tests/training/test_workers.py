import contextlib
import itertools
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from batchgenerators.dataloading import multi_threaded_augmenter

from biasreg.core.errors import TrainingError
from biasreg.training.data import LoaderSettings
from biasreg.training.workers import open_batches


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_group_do_not_end_the_workers(source, sampler, number):
    with open_batches(source, sampler, LoaderSettings(1, 0, 0.5, 1), 0) as batches:
        next(batches)
        os.kill(multiprocessing.active_children()[0].pid, number)
        for _ in range(10):
            next(batches)


def test_a_worker_killed_while_it_sends_a_batch_does_not_hang_training(source, sampler, monkeypatch):
    def half_a_batch(queue, *_):
        queue._writer._send(struct.pack("!i", 1000) + b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(multi_threaded_augmenter, "producer", half_a_batch)
    with (
        open_batches(source, sampler, LoaderSettings(1, 0, 0.5, 1), 0) as batches,
        pytest.raises(TrainingError, match="worker"),
    ):
        next(batches)


ORPHANS = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from biasreg.training.data import CaseSource, LoaderSettings
from biasreg.training.sampling import PairSampler
from biasreg.training.workers import open_batches
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


@pytest.mark.parametrize(("allowed", "notices"), [(2, ["going on with 2"]), (0, ["with 2", "with 1", "with 0"])])
def test_where_fewer_workers_can_start_training_goes_on_with_fewer(
    source, sampler, monkeypatch, caplog, allowed, notices
):
    restart = multi_threaded_augmenter.MultiThreadedAugmenter._start

    def limited(self):
        if self.num_processes > allowed:
            raise OSError(28, "No space left on device")
        restart(self)

    monkeypatch.setattr(multi_threaded_augmenter.MultiThreadedAugmenter, "_start", limited)
    make, made = multi_threaded_augmenter.Event, []

    def scarce():  # semaphores lie in /dev/shm: the first one, of four workers, finds no room there
        made.append(1)
        if len(made) == 1:
            raise OSError(28, "No space left on device")
        return make()

    monkeypatch.setattr(multi_threaded_augmenter, "Event", scarce)
    for ours, theirs in zip(take(source, sampler, 3, workers=4), take(source, sampler, 3, workers=0), strict=True):
        assert_same(ours, theirs)
    said = [record.getMessage() for record in caplog.records]
    assert [notice in message for notice, message in zip(notices, said, strict=True)] == [True] * len(notices)
    assert multiprocessing.active_children() == []
