"""A real Dask cluster of two worker processes on this machine."""

import importlib
import os
import time
from types import SimpleNamespace

import pytest
from distributed import LocalCluster

from biasreg.core import cluster, parallel
from biasreg.core.cluster import ClusterExecutor, open_cluster
from biasreg.core.errors import BiasregError, ImageError, InputError
from biasreg.core.parallel import map_cases
from biasreg.core.paths import check_readable

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def local_cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=0) as workers:
        yield workers


@pytest.fixture
def scheduler(local_cluster):
    """Its address, once its workers are there, also those that took the place of one that died."""
    local_cluster.wait_for_workers(2, timeout=60)
    return local_cluster.scheduler_address


@pytest.fixture
def executor(scheduler):
    with open_cluster(scheduler) as executor:
        yield executor


def test_work_is_done_by_other_processes_in_the_order_of_the_cases(executor, monkeypatch):
    monkeypatch.setattr(parallel, "CALLS_UNDER_WAY", 3)
    cases = {f"c{number}": (number,) for number in range(-8, 8)}
    expected = [(name, abs(*value)) for name, value in cases.items()]
    assert list(map_cases(abs, cases, executor, "work").items()) == expected
    assert map_cases(os.getpid, {"a": ()}, executor, "work")["a"] != os.getpid()


def test_each_call_is_made_also_one_that_was_made_before(executor):
    first = executor.submit(time.time_ns)
    assert first.result() < executor.submit(time.time_ns).result()


def test_a_task_has_one_core(executor):
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    assert map_cases(os.getenv, {name: (name,) for name in variables}, executor, "work") == dict.fromkeys(
        variables, "1"
    )


def test_an_error_of_the_work_keeps_its_class_and_names_its_case(executor, tmp_path):
    with pytest.raises(ImageError, match=r"case b: .*x\.nii: there is no such file"):
        map_cases(check_readable, {"b": (tmp_path / "x.nii",)}, executor, "work")


def test_the_first_error_takes_back_what_has_not_begun(executor, tmp_path):
    work = "import pathlib, time; pathlib.Path({!r}).touch(); time.sleep(0.1)"
    calls = {"b": ("1 / 0",)} | {f"c{number}": (work.format(str(tmp_path / f"{number}")),) for number in range(20)}
    with pytest.raises(ZeroDivisionError):
        map_cases(exec, calls, executor, "work")
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) < 10


def test_the_work_of_a_worker_that_died_is_done_by_another(executor, tmp_path):
    path = tmp_path / "died"
    die_once = f"import os, pathlib; path = pathlib.Path({str(path)!r}); path.exists() or path.touch() or os._exit(1)"
    assert map_cases(exec, {"a": (die_once,)}, executor, "work") == {"a": None}
    assert path.exists()


def test_a_worker_that_cannot_import_the_work_says_so(executor, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def work(): pass")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BiasregError, match=r"case a: a Dask worker cannot import .*only_here.* install biasreg"):
        map_cases(importlib.import_module("only_here").work, {"a": ()}, executor, "work")


def test_work_that_kills_every_worker_ends_with_one_clear_error(executor):
    with pytest.raises(BiasregError, match=r"case a: the Dask workers .*died.*memory.*goes on where it was") as error:
        map_cases(os._exit, {"a": (1,)}, executor, "work")
    assert "\n" not in str(error.value)


def test_folders_that_the_workers_do_not_see_are_refused(scheduler, tmp_path, monkeypatch):
    there, gone = tmp_path / "there", tmp_path / "gone"
    there.mkdir()
    with open_cluster(scheduler, [there, there / "still" / "to_be_made"]):
        pass
    gone.mkdir()
    monkeypatch.setattr(cluster, "_nearest", lambda folder: folder / "x")
    with (
        pytest.raises(InputError, match=r"does not see .*gone.* folders that all machines share"),
        open_cluster(scheduler, [gone]),
    ):
        pass


def test_workers_of_another_version_are_refused(scheduler, monkeypatch):
    monkeypatch.setattr(cluster, "biasreg", SimpleNamespace(__version__="9.9"))
    with pytest.raises(InputError, match=r"worker .* has biasreg .*, this is 9\.9"), open_cluster(scheduler):
        pass


def test_a_scheduler_file_serves_as_address(scheduler, tmp_path):
    path = tmp_path / "scheduler.json"
    path.write_text(f'{{"address": "{scheduler}", "type": "Scheduler", "id": "x", "workers": {{}}, "services": {{}}}}')
    with open_cluster(str(path)) as executor:
        assert executor.submit(abs, -1).result() == 1


def test_without_workers_it_is_said_what_is_waited_for(caplog):
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as empty,
        open_cluster(empty.scheduler_address),
    ):
        pass
    assert "no worker has joined the Dask scheduler" in caplog.text


def test_a_scheduler_that_ends_is_named():
    remote = SimpleNamespace(status="lost", add_done_callback=lambda function: function(remote))
    client = SimpleNamespace(submit=lambda *arguments, **keywords: remote)
    with pytest.raises(BiasregError, match=r"case a: the Dask cluster gave the work up \(lost\)"):
        map_cases(abs, {"a": (1,)}, ClusterExecutor(client), "work")


@pytest.mark.parametrize(
    ("error", "words"), [(MemoryError(), "out of memory"), (ImportError("no biasreg"), "install biasreg")]
)
def test_what_a_worker_lacks_is_said(error, words):
    remote = SimpleNamespace(status="error", exception=lambda: error)
    remote.add_done_callback = lambda function: function(remote)
    client = SimpleNamespace(submit=lambda *arguments, **keywords: remote)
    with pytest.raises(BiasregError, match=words):
        map_cases(abs, {"a": (1,)}, ClusterExecutor(client), "work")
