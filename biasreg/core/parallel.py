"""Work over many cases on local processes, as many as cores and memory allow."""

import logging
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

logger = logging.getLogger(__name__)

GIB = 2.0**30
# float32 image, its smoothed copy, foreground mask, coordinates and one label's membership at a time.
BYTES_PER_RAW_VOXEL = 40.0
IMPORTS_GIB = 0.4  # what an idle worker occupies


def available_memory_gib() -> float:
    """Measure the memory that can still be used without swapping.

    Returns:
        GiB; the machine's whole memory where the system does not tell what is available.
    """
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return float(fields["MemAvailable"].split()[0]) * 1024 / GIB
    except (OSError, KeyError):
        return total_memory_gib()


def total_memory_gib() -> float:
    """Measure the machine's memory.

    Returns:
        GiB.
    """
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB


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


def process_executor(workers: int) -> ProcessPoolExecutor:
    """Start a pool of fresh processes.

    Processes are spawned, not forked, because torch and ITK hold threads that do not survive a fork; a script that
    calls this therefore needs an `if __name__ == "__main__":` guard.

    Args:
        workers: Number of processes.

    Returns:
        The pool, to be used in a `with` statement.
    """
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_single_thread)


def _single_thread() -> None:
    """Keep each worker on one core: the pool already has one worker per core."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
