"""Starting the processes of this computer that train together, and waiting for them."""

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
from multiprocessing.process import BaseProcess
from types import FrameType

from biasreg.core.parallel import die_with_parent
from biasreg.training.distributed import Seat
from biasreg.training.interruption import SIGNALS

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
        for process in processes:
            process.start()
        with _passing_on(processes):
            first = _wait_for_failure(processes)
            own = [process.exitcode for process in processes if process.exitcode not in (None, 0, 1)]
            killed = [rank for rank, process in enumerate(processes) if (process.exitcode or 0) < 0]
            _end(processes)
    for rank in killed:
        name = signal.Signals(-(processes[rank].exitcode or 0)).name
        logger.error(
            "process %d of %d was ended by %s, most often because main memory was short · --c resumes from the latest "
            "checkpoint",
            rank,
            size,
            name,
        )
    code = (own or [first])[0] or 0
    return 128 - code if code < 0 else code


def _take_seat(function: Callable[[Seat], int], seat: Seat) -> None:
    os.setpgrp()  # a terminal's Ctrl-C comes through the launcher, once
    threading.Thread(target=die_with_parent, daemon=True).start()
    try:
        code = function(seat)
    except SystemExit as left:  # another process says why
        code = left.code if isinstance(left.code, int) else 1
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
def _passing_on(processes: Sequence[BaseProcess]) -> Iterator[None]:
    """Pass the signals that ask a run to stop on to the processes."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)

    former = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
