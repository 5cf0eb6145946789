import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor

import pytest

from biasreg.core import parallel
from biasreg.core.errors import BiasregError, ImageError
from biasreg.core.parallel import map_cases, memory_per_case_gib, number_of_workers, process_executor

GIB = 2**30


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def fail(error):
    raise error


class BrokenPool(Executor):
    """A pool whose worker dies with its first task."""

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        future.set_exception(BrokenExecutor("gone"))
        return future


def test_results_come_by_case_in_the_order_of_the_cases(executor):
    cases = {name: (name, "!") for name in ("b", "a", "c")}
    assert list(map_cases(str.__add__, cases, executor, "work").items()) == [("b", "b!"), ("a", "a!"), ("c", "c!")]
    assert map_cases(str, {}, executor, "work") == {}


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ImageError("x.nii.gz: cut off"), ImageError, r"case b: x\.nii\.gz: cut off"),
        (OSError(28, "No space left on device"), BiasregError, "case b: .*No space left on device.*run again"),
        (MemoryError(), BiasregError, "case b: out of memory.*-np"),
    ],
)
def test_an_error_keeps_its_class_and_names_its_case(error, kind, words, executor):
    with pytest.raises(kind, match=words):
        map_cases(fail, {"b": (error,)}, executor, "work")


def test_a_fault_of_the_program_is_passed_on_and_its_case_logged(executor, caplog):
    with pytest.raises(ZeroDivisionError):
        map_cases(fail, {"b": (ZeroDivisionError(),)}, executor, "work")
    assert "case b" in caplog.text


def test_the_first_error_ends_the_work(executor):
    begun = []

    def work(name):
        begun.append(name)
        time.sleep(0.01)
        raise ImageError(name)

    with pytest.raises(ImageError):
        map_cases(work, {str(number): (str(number),) for number in range(50)}, executor, "work")
    assert len(begun) < 10


class CountingPool(ThreadPoolExecutor):
    """A pool that knows how many calls it was given at once."""

    under_way = most = 0

    def submit(self, function, /, *args, **kwargs):
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        return super().submit(function, *args, **kwargs)

    def work(self, value):
        self.under_way -= 1
        return value


def test_calls_are_handed_over_a_bounded_number_at_a_time():
    with CountingPool(1) as pool:
        results = map_cases(pool.work, {str(number): (number,) for number in range(100_000)}, pool, "work")
    assert list(results.values()) == list(range(100_000))
    assert 2 < pool.most <= parallel.CALLS_UNDER_WAY + 1  # one may be counted while its result is on its way


def test_a_dead_worker_is_explained():
    with pytest.raises(BiasregError, match=r"a worker died.*memory.*-np"):
        map_cases(str, {"a": (1,)}, BrokenPool(), "work")


def test_a_single_worker_is_a_thread_of_this_process():
    with process_executor(1) as pool:
        assert pool.submit(os.getpid).result() == os.getpid()


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed():
    code = """
import os, signal, time
from biasreg.core.parallel import process_executor
if __name__ == "__main__":
    with process_executor(2) as pool:
        pids = {pool.submit(os.getpid).result()}
        pool.submit(time.sleep, 60)
        pids.add(pool.submit(os.getpid).result())
        print(*pids, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(is_alive(pid) for pid in workers):
        time.sleep(0.05)
    left = [pid for pid in workers if is_alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


SLEEP = """
import signal, sys, time
from pathlib import Path
from biasreg.core.parallel import map_cases, process_executor

def sleep(path):
    Path(path).touch()
    time.sleep(120)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests in the background ignores it
    with process_executor(2) as executor:
        map_cases(sleep, {name: (f"{sys.argv[1]}/{name}",) for name in "ab"}, executor, "sleep")
"""


@pytest.mark.slow
def test_a_first_ctrl_c_lets_cases_finish_and_says_so_and_a_second_one_ends_them(tmp_path):
    script = tmp_path / "sleep.py"
    script.write_text(SLEEP)
    with subprocess.Popen([sys.executable, str(script), str(tmp_path)], stderr=subprocess.PIPE, text=True) as running:
        while not all((tmp_path / name).exists() for name in "ab"):
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        for line in running.stderr:
            if "are being finished; Ctrl-C again ends them at once" in line:
                break
        assert running.poll() is None
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=30) != 0


@pytest.mark.slow
def test_several_workers_are_processes_with_one_thread_that_leave_ctrl_c_to_their_parent():
    with process_executor(2) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() == "1"
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN


def test_the_user_may_choose_the_number_of_workers():
    assert number_of_workers(7, 1e9) == 7
    assert number_of_workers(0, 1.0) == 1


@pytest.mark.parametrize(("free_gib", "expected"), [(100.0, 4), (6.0, 2), (0.5, 1)])
def test_workers_are_as_many_as_cores_and_memory_allow(free_gib, expected, monkeypatch):
    monkeypatch.setattr(parallel, "available_memory_gib", lambda: free_gib)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    assert number_of_workers(None, 2.0) == expected


def test_memory_grows_with_the_case():
    assert memory_per_case_gib(10**9) > memory_per_case_gib(10**6) > 0


@pytest.mark.parametrize(
    ("limit", "used", "statistics"),
    [
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_a_containers_limit_counts_and_cached_files_count_as_free(limit, used, statistics, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "CGROUP_FOLDER", tmp_path)
    for name, text in ((limit, f"{GIB}\n"), (used, f"{GIB // 2}\n")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / used).with_name("memory.stat").write_text(f"anon 5\n{statistics} {GIB // 4}\n")
    assert parallel.total_memory_gib() == 1
    assert parallel.available_memory_gib() == pytest.approx(0.75, abs=0.01)


def test_without_a_limit_the_machine_counts(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("inactive_file 0\n")
    monkeypatch.setattr(parallel, "CGROUP_FOLDER", tmp_path)
    assert 0 < parallel.available_memory_gib() <= parallel.total_memory_gib() < float("inf")
