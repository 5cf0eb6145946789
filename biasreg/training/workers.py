"""Background processes that make the batches ahead of the training step.

Worker w of n makes the batches start + w, start + w + n, ...; one queue per worker, read in turn, puts them back in
order.
"""

import functools
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from batchgenerators.dataloading.data_loader import SlimDataLoaderBase
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

from biasreg.core.errors import BiasregError, TrainingError
from biasreg.core.parallel import die_with_parent
from biasreg.training.data import CaseSource, HostBatch, LoaderSettings, make_batch
from biasreg.training.sampling import PairSampler

logger = logging.getLogger(__name__)

CACHED_BATCHES_PER_WORKER = 2


class _Failure(NamedTuple):
    """What a worker sends in place of a batch that it could not make."""

    message: str


def default_workers(sharing: int = 1) -> int:
    """Return how many workers feed one device: half of its share of the usable cores, between 1 and 6.

    Args:
        sharing: Number of training processes that share this computer.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(6, max(1, cores // (2 * sharing)))


@contextmanager
def open_batches(
    source: CaseSource, sampler: PairSampler, settings: LoaderSettings, start: int
) -> Iterator[Iterator[HostBatch]]:
    """Give the endless stream of batches `start`, `start` + 1, ...; workers end with the context.

    Args:
        source: Where cases are read from.
        sampler: Draws the pairs.
        settings: Batch size, seed, strength and number of workers.
        start: Number of the first batch.

    Yields:
        An iterator over batches. Where the system lets fewer workers start than asked for, that is logged.

    Raises:
        TrainingError: From the iterator, if a batch cannot be made or a worker dies.
    """
    make = functools.partial(make_batch, source, sampler, settings)
    workers = settings.workers
    while workers > 0:
        loader = _PairLoader(make, settings.batch_size, start, workers)
        try:
            augmenter = _begun(loader, workers)
        except _CannotStartError as error:
            logger.warning(
                "%d background workers that load data cannot be started (%s): /dev/shm or the number of processes is "
                "too small · going on with %d",
                workers,
                error,
                workers // 2,
            )
            workers //= 2
            continue
        try:
            yield _checked(augmenter)
        finally:
            augmenter._finish()
        return
    yield _checked(SingleThreadedAugmenter(_PairLoader(make, settings.batch_size, start, 1), None))


class _CannotStartError(Exception):
    """The system does not let a background process start."""


class _PairLoader(SlimDataLoaderBase):
    """Makes every n-th batch, beginning with that of its worker number."""

    def __init__(self, make: "functools.partial[HostBatch]", batch_size: int, start: int, workers: int) -> None:
        super().__init__(make, batch_size, workers)
        self._next = start

    def set_thread_id(self, thread_id: int) -> None:
        """Prepare a worker process; batchgenerators calls this first thing in it."""
        super().set_thread_id(thread_id)
        self._next += thread_id
        for number in (signal.SIGINT, signal.SIGTERM):  # terminals and schedulers tell the whole group,
            signal.signal(number, signal.SIG_IGN)  # but it is the trainer that decides
        torch.set_num_threads(1)
        threading.Thread(target=die_with_parent, daemon=True).start()

    def generate_train_batch(self) -> HostBatch | _Failure:
        """Make the next batch; a failure is sent as a message, since an exception would only be printed."""
        index = self._next
        self._next += self.number_of_threads_in_multithreaded
        try:
            batch: HostBatch = self._data(index)
        except BiasregError as error:
            return _Failure(str(error))
        except Exception:
            return _Failure(f"batch {index} could not be made\n{traceback.format_exc()}")
        return batch


class _Workers(MultiThreadedAugmenter):
    """batchgenerators' workers, which neither dying nor ending can make the training process wait for ever.

    A worker that is killed while it sends a batch leaves half of it in the pipe, and every read of that pipe then waits
    for the rest.
    """

    _processes: list[multiprocessing.Process]
    _queues: list[multiprocessing.Queue]
    pin_memory_thread: threading.Thread | None

    def watch(self) -> None:
        """Raise the alarm when a worker ends, even while a read waits for it."""
        sentinels = [process.sentinel for process in self._processes]

        def wait() -> None:
            multiprocessing.connection.wait(sentinels)
            self.abort_event.set()

        threading.Thread(target=wait, daemon=True).start()

    def _finish(self, timeout: float = 1.0, force: bool = False) -> None:
        """End the workers without reading what they have sent."""
        del force  # batchgenerators' own way to end reads the pipes, unless told so
        if not self._processes:
            return
        self.abort_event.set()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        if self.pin_memory_thread is not None:
            self.pin_memory_thread.join(timeout)
        self._queues, self._processes = [], []
        self.pin_memory_queue = self.pin_memory_thread = None
        self.was_initialized = False


def _begun(loader: _PairLoader, workers: int) -> _Workers:
    """Start workers.

    Raises:
        _CannotStartError: If the system lacks what they need.
    """
    augmenter = None
    try:
        augmenter = _Workers(loader, None, workers, CACHED_BATCHES_PER_WORKER)
        with warnings.catch_warnings():
            # Python 3.12 warns of any fork beside threads. The workers use NumPy only, and wait for no lock of torch.
            warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
            augmenter.restart()
    except OSError as error:
        if augmenter is not None:
            augmenter._finish()
        raise _CannotStartError(error) from error
    augmenter.watch()
    return augmenter


def _checked(augmenter: SingleThreadedAugmenter | MultiThreadedAugmenter) -> Iterator[HostBatch]:
    while True:
        try:
            item = next(augmenter)
        except RuntimeError as error:
            raise TrainingError(
                f"a background worker that loads training data died ({error}) · most often the system ended it for "
                "want of main memory · use fewer workers (--num_workers 0 uses none), then resume with --c"
            ) from error
        if isinstance(item, _Failure):
            raise TrainingError(item.message)
        yield item
