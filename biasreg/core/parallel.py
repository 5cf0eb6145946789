"""Work over many cases on local processes, as many as cores and memory allow."""

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

from tqdm import tqdm

from biasreg.core.errors import BiasregError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

GIB = 2.0**30
# float32 image, its smoothed copy, foreground mask, coordinates and one label's membership at a time: 31 bytes were
# measured for a CT of 26 million voxels with its labels, imports apart.
BYTES_PER_RAW_VOXEL = 40.0
IMPORTS_GIB = 0.4  # what an idle worker occupies
CGROUP_FOLDER = Path("/sys/fs/cgroup")
# Calls that are handed to an executor at once: enough to keep some hundred workers of a cluster busy, and so few that
# what they hold does not grow with the dataset.
CALLS_UNDER_WAY = 1024


def available_memory_gib() -> float:
    """Measure the memory that can still be used without swapping, or without passing the container's limit.

    Returns:
        GiB; the machine's whole memory where the system does not tell what is available.
    """
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        free = float(fields["MemAvailable"].split()[0]) * 1024 / GIB
    except (OSError, KeyError):
        free = total_memory_gib()
    limit, used = _container_memory_gib()
    return min(free, max(limit - used, 0.0))


def total_memory_gib() -> float:
    """Measure the machine's memory, or the container's share of it.

    Returns:
        GiB.
    """
    return min(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB, _container_memory_gib()[0])


def memory_per_case_gib(voxels: int) -> float:
    """Estimate what one worker needs for one case.

    Args:
        voxels: Voxels of the largest raw image, times its channels.

    Returns:
        GiB.
    """
    return IMPORTS_GIB + voxels * BYTES_PER_RAW_VOXEL / GIB


def number_of_workers(requested: int | None, per_worker_gib: float) -> int:
    """Choose the number of workers: one per core, as far as memory allows.

    Args:
        requested: Number that the user asked for; None for the best.
        per_worker_gib: Memory of one worker.

    Returns:
        At least 1; what the user asked for is taken as it is.
    """
    if requested is not None:
        return max(1, requested)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    by_memory = int(available_memory_gib() * 0.8 / per_worker_gib)
    if by_memory < cores:
        logger.info("memory allows %d workers (%.1f GiB each) on %d cores", max(1, by_memory), per_worker_gib, cores)
    return max(1, min(cores, by_memory))


def process_executor(workers: int) -> Executor:
    """Start workers: a pool of fresh processes, or for a single worker a thread of this process.

    Processes are spawned, not forked, because torch and ITK hold threads that do not survive a fork; a script that
    calls this therefore needs an `if __name__ == "__main__":` guard. They ignore Ctrl-C, which is for this process to
    act on.

    Args:
        workers: Number of workers.

    Returns:
        The pool, to be used in a `with` statement.
    """
    if workers == 1:
        return ThreadPoolExecutor(1)
    return _InterruptiblePool(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare_worker)


class _InterruptiblePool(ProcessPoolExecutor):
    """A pool that finishes what is under way when it is interrupted, unless it is interrupted again."""

    _processes: dict[int, multiprocessing.Process]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            logger.warning("interrupted: the cases under way are being finished; Ctrl-C again ends them at once")
        try:
            return super().__exit__(kind, error, traceback)
        except KeyboardInterrupt:
            for process in list((self._processes or {}).values()):
                process.kill()
            raise


def map_cases(
    function: Callable[..., Result], arguments: Mapping[str, tuple[Any, ...]], executor: Executor, description: str
) -> dict[str, Result]:
    """Call a function once for each case, with a progress bar; the first error ends all and names its case.

    A bounded number of calls is handed to the executor at a time.

    Args:
        function: What is called.
        arguments: Its positional arguments by case identifier.
        executor: Where it is called.
        description: Label of the progress bar.

    Returns:
        Results by case identifier, in the order of `arguments`.

    Raises:
        BiasregError: What the function raised, of the same class; or files could not be read or written, memory ran
            out, or a worker died.
    """
    with explained_deaths(), closing(_results(function, arguments, executor)) as found:
        results = dict(tqdm(found, total=len(arguments), desc=description, disable=None))
    return {name: results[name] for name in arguments}


def _results(
    function: Callable[..., Result], arguments: Mapping[str, tuple[Any, ...]], executor: Executor
) -> Generator[tuple[str, Result], None, None]:
    """Give results as they come; what has not begun is cancelled when the caller leaves or a call fails."""
    waiting = iter(arguments.items())
    under_way: dict[Future[Result], str] = {}
    done: SimpleQueue[Future[Result]] = SimpleQueue()  # waiting for all at once would take time for each, each time
    try:
        while True:
            for name, values in islice(waiting, CALLS_UNDER_WAY - len(under_way)):
                future = executor.submit(function, *values)
                under_way[future] = name
                future.add_done_callback(done.put)
            if not under_way:
                return
            future = done.get()
            name = under_way.pop(future)
            yield name, _result(future, name)
    finally:
        for future in under_way:
            future.cancel()


@contextmanager
def explained_deaths() -> Iterator[None]:
    """Say in the user's words that a worker died inside the block.

    Raises:
        BiasregError: In place of `BrokenExecutor`.
    """
    try:
        yield
    except BrokenExecutor as error:
        raise BiasregError(
            "a worker died without a word, most likely because memory ran out · run again with fewer workers (-np)"
        ) from error


def _result(future: "Future[Result]", name: str) -> Result:
    try:
        return future.result()
    except BiasregError as error:
        raise type(error)(f"case {name}: {error}") from error
    except OSError as error:
        raise BiasregError(
            f"case {name}: {error} · files could not be read or written; mend that and run again"
        ) from error
    except MemoryError as error:
        raise BiasregError(f"case {name}: out of memory · run again with fewer workers (-np)") from error
    except BrokenExecutor:
        raise
    except Exception:
        logger.error("case %s:", name)
        raise


def die_with_parent() -> None:
    """End this process when the one that started it is gone, however it ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _prepare_worker() -> None:
    """Keep each worker on one core, since the pool has one worker per core, and leave Ctrl-C to the parent."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=die_with_parent, daemon=True).start()


def _container_memory_gib() -> tuple[float, float]:
    """Limit and use of memory in this container, in GiB; an infinite limit outside of containers."""
    for limit, used in (
        (CGROUP_FOLDER / "memory.max", CGROUP_FOLDER / "memory.current"),
        (CGROUP_FOLDER / "memory" / "memory.limit_in_bytes", CGROUP_FOLDER / "memory" / "memory.usage_in_bytes"),
    ):
        try:
            in_use = float(used.read_text()) - _reclaimable_bytes(used.with_name("memory.stat"))
            return float(limit.read_text()) / GIB, in_use / GIB
        except (OSError, ValueError):  # ValueError: the word "max", for no limit
            continue
    return float("inf"), 0.0


def _reclaimable_bytes(path: Path) -> float:
    """Files that were read and are still held in memory; they give way when memory is needed."""
    statistics = dict(line.split() for line in path.read_text().splitlines())
    return float(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
