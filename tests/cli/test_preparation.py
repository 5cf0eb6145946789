import sys
from types import SimpleNamespace

import pytest

from biasreg.cli.preparation import run_preparation


@pytest.fixture
def prepare(flags):
    """Return a function that gives what a step is called with."""

    def prepare(*arguments, plans=False):
        calls = []
        code = run_preparation(
            "Test.", lambda *given: calls.append(given), ["-d", "700", *arguments, *flags], plans=plans
        )
        assert len(calls) == (code == 0)
        return calls[0] if calls else code

    return prepare


def test_options_reach_the_step(prepare, tmp_path):
    roots, dataset, options, executor = prepare(
        "-p", "mine", "-np", "3", "--clean", "-gpu_memory_target", "11", "--encoder", "voco_l", plans=True
    )
    assert options.encoder == "voco_l"
    assert (roots.raw, dataset, executor) == (tmp_path / "raw", "700", None)
    assert (options.device, options.memory_gib) == ("cuda", 11)
    assert (options.plans_name, options.num_workers, options.clean, options.verify) == ("mine", 3, True, True)


@pytest.mark.parametrize(("found", "expected"), [(None, "cpu"), (24 * 2**30, "cuda")])
def test_planning_looks_for_a_gpu(found, expected, prepare, monkeypatch):
    properties = SimpleNamespace(total_memory=found)
    cuda = SimpleNamespace(is_available=lambda: found is not None, get_device_properties=lambda index: properties)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    options = prepare(plans=True)[2]
    assert options.device == expected
    assert options.memory_gib == 24 if found else options.memory_gib > 0


def test_steps_that_plan_nothing_do_not_wait_for_torch(prepare, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # to import it would fail
    assert prepare(plans=False)[2].device == "cpu"


@pytest.mark.parametrize(
    "arguments", [["-gpu_memory_target", "-1"], ["-gpu_memory_target", "nan"], ["-np", "0"], ["-np", "two"], ["--cl"]]
)
def test_wrong_arguments_end_with_code_2(arguments, prepare, capsys):
    with pytest.raises(SystemExit) as end:
        prepare(*arguments)
    assert end.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_an_address_without_a_scheduler_is_refused(prepare, monkeypatch, capsys):
    def connect(**where):
        raise OSError(f"timed out after 30 s trying to reach {where['address']}")

    monkeypatch.setitem(sys.modules, "distributed", SimpleNamespace(Client=connect))
    assert prepare("--dask", "tcp://there:8786") == 2
    assert "no Dask scheduler answers at 'tcp://there:8786'" in capsys.readouterr().err


def test_without_the_package_of_dask_it_is_said_what_to_install(prepare, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert prepare("--dask", "tcp://here:8786") == 2
    assert "pip install 'biasreg[cluster]'" in capsys.readouterr().err
