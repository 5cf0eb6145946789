"""Starting the processes of this computer that train together, and waiting for them."""

import gc
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from types import FrameType

from tqdm import tqdm

from biasreg.core.parallel import die_with_parent
from biasreg.training.distributed import Seat
from biasreg.training.interruption import SIGNALS, StopRequest

logger = logging.getLogger(__name__)

FOLLOW_SECONDS = 5.0  # that the others have to end by themselves when one has failed, and to say why
GRACE_SECONDS = 30.0  # between asking them to end and killing them


def launch(function: Callable[[Seat], int], size: int) -> int:
    """Call a function in several processes of this computer that train together, and wait for all of them.

    SIGINT and SIGTERM are passed on to the processes, which a terminal does not reach: they have a group of their own
    each. When one process fails, the others are ended; a process that raises an exception prints its traceback.

    Args:
        function: Called with the seat of its process; can be pickled; returns an exit code.
        size: Number of processes.

    Returns:
        0 if all of them returned 0, else the exit code of one that failed: rather a code that it returned than 1, which
        is that of a traceback, since the others break when the first one ends.
    """
    with tempfile.TemporaryDirectory() as folder:
        seats = [Seat(rank, size, rank, size, f"file://{folder}/meeting") for rank in range(size)]
        make = multiprocessing.get_context("spawn").Process
        processes = [make(target=_take_seat, args=(function, seat)) for seat in seats]
        with _passing_on(processes) as request:
            with _held_back():
                early = request.signal_number  # it found nobody to be passed on to
                for process in processes:
                    process.start()
            if early is not None:
                _send(processes, early)
            first = _wait_for_failure(processes)
            codes = [process.exitcode or 0 for process in processes]
            _end(processes)
    _explain(codes, request)
    code = next((code for code in codes if code not in {0, 1}), first)
    return 128 - code if code < 0 else code


def _explain(codes: Sequence[int], request: StopRequest) -> None:
    """Say which processes were ended by a signal, for they did not say so themselves."""
    if request.signal_number is not None and -request.signal_number in codes:
        logger.error(
            "stopped by %s while no step was under way, so that no state was saved · the same command starts again",
            request.signal_name,
        )
    for rank, code in enumerate(codes):
        if code < 0 and -code != request.signal_number:
            short = ", most often because main memory was short" if -code == signal.SIGKILL else ""
            logger.error(
                "process %d of %d was ended by %s%s · --c resumes from the latest checkpoint",
                rank,
                len(codes),
                signal.Signals(-code).name,
                short,
            )


def _take_seat(function: Callable[[Seat], int], seat: Seat) -> None:
    os.setpgrp()  # a terminal's Ctrl-C comes through the launcher, once
    threading.Thread(target=die_with_parent, daemon=True).start()
    # Until the training loop sets handlers of its own, a signal ends this process; the launcher says so.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    # tqdm's own lock holds a semaphore, which nobody gives back where a process leaves by `os._exit` below.
    tqdm.set_lock(threading.RLock())
    try:
        code = function(seat)
    except SystemExit as left:  # another process says why
        code = left.code if isinstance(left.code, int) else 1
    gc.collect()  # an error may hold the queues of loading processes, and these hold semaphores too
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by sys.exit: now and then gloo's threads outlive the interpreter, and the process aborts (torch 2.13).
    os._exit(code)


def _wait_for_failure(processes: Sequence[BaseProcess]) -> int:
    """Wait until all have ended well, or one has failed and the others had time to follow it; its code, or 0."""
    while waiting := [process for process in processes if process.exitcode is None]:
        multiprocessing.connection.wait([process.sentinel for process in waiting])
        failed = [process.exitcode for process in processes if process.exitcode]
        if failed:
            deadline = time.monotonic() + FOLLOW_SECONDS
            for process in processes:
                process.join(max(deadline - time.monotonic(), 0.0))
            return failed[0]
    return next((process.exitcode for process in processes if process.exitcode), 0)


def _end(processes: Sequence[BaseProcess]) -> None:
    """End what still runs: first asked, then killed."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0.0))
        process.kill()
        process.join()


@contextmanager
def _passing_on(processes: Sequence[BaseProcess]) -> Iterator[StopRequest]:
    """Pass the signals that ask a run to stop on to the processes; yields what remembers the first of them."""
    request = StopRequest()

    def pass_on(number: int, frame: FrameType | None) -> None:
        request.signal_number = request.signal_number or number
        _send(processes, number)

    former = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _send(processes: Sequence[BaseProcess], number: int) -> None:
    for process in processes:
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, number)


@contextmanager
def _held_back() -> Iterator[None]:
    """Hold signals back while processes are started: until they sit down they could but answer with a traceback.

    The processes inherit that, and take the signals up in `_take_seat`.
    """
    resource_tracker.ensure_running()  # its start would end the holding back
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
