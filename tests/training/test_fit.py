from dataclasses import replace

import pytest
import torch

from biasreg.core.errors import PlansError, TrainingError
from biasreg.network.checkpoint import load_checkpoint
from biasreg.planning.fallback import fallbacks
from biasreg.training import fit
from biasreg.training.fit import check_memory, fit_to_device
from biasreg.training.fold import train_fold
from biasreg.training.observers import LOG_FILE
from biasreg.training.options import TrainingOptions
from biasreg.training.step_memory import measure_step_gib

CPU = torch.device("cpu")


@pytest.fixture
def full_until(monkeypatch):
    """Give a function that makes each step run out of memory until a configuration is tried."""

    def full(configuration, error=torch.OutOfMemoryError):
        tried = []

        def measure(candidate, device):
            tried.append(candidate)
            if candidate != configuration:
                raise error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
            return 0.5

        monkeypatch.setattr(fit, "measure_step_gib", measure)
        return tried

    return full


def test_what_fits_is_trained_as_planned(configuration):
    fitted = fit_to_device(configuration, CPU)
    assert fitted.configuration == configuration
    assert fitted.steps == ()
    assert 0 < fitted.measured_gib < 2
    assert fitted.predicted_gib > 0


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_what_does_not_fit_gives_way_step_by_step(configuration, full_until, error, caplog):
    smaller = list(fallbacks(configuration))
    tried = full_until(smaller[1].configuration, error)
    fitted = fit_to_device(configuration, CPU)
    assert fitted.configuration == smaller[1].configuration
    assert fitted.steps == (smaller[0].step, smaller[1].step)
    assert tried == [configuration, smaller[0].configuration, smaller[1].configuration]
    assert f"falling back: {smaller[0].step}" in caplog.text


def test_if_nothing_fits_it_is_said_what_was_tried(configuration, full_until):
    full_until(None)
    with pytest.raises(TrainingError, match=r"not even one that gives up activations .*voxels of .* plan for less"):
        fit_to_device(configuration, CPU)


def test_another_error_is_no_lack_of_memory(configuration, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(fit, "measure_step_gib", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        fit_to_device(configuration, CPU)


def test_on_a_cpu_what_is_predicted_not_to_fit_is_not_tried(configuration, full_until, monkeypatch):
    tried = full_until(configuration)
    monkeypatch.setattr(fit, "available_memory_gib", lambda: 0.0)
    with pytest.raises(TrainingError):
        fit_to_device(configuration, CPU)
    assert tried == []


def test_measuring_leaves_the_random_state_alone(configuration):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    measure_step_gib(configuration, CPU)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("index", [0, -1])
def test_a_run_that_fell_back_says_so_writes_what_it_used_and_can_be_resumed(
    write_dataset, configuration, full_until, index, caplog
):
    smaller = list(fallbacks(configuration))[index].configuration
    full_until(smaller)
    roots = write_dataset()
    options = TrainingOptions(plans_name="tiny", device="cpu", epochs=1, iterations_per_epoch=2, num_workers=0)
    folder = train_fold(roots, "901", 0, options)
    assert "the plans did not fit; this run goes without: " in (folder / LOG_FILE).read_text()
    checkpoint = load_checkpoint(folder / "checkpoint_latest.pth")
    assert checkpoint.identity.configuration == smaller
    assert (
        f'"checkpointing": {str(smaller.network.checkpointing).lower()}' in (folder.parent / "plans.json").read_text()
    )
    train_fold(roots, "901", 0, replace(options, resume=True, epochs=None, iterations_per_epoch=None))
    assert "nothing to resume" in (folder / LOG_FILE).read_text()


def test_predicted_and_measured_memory_are_compared_for_each_configuration(write_dataset, monkeypatch):
    roots = write_dataset()
    (line,) = check_memory(roots, "901", "tiny", device="cpu")
    assert line.startswith("main (16×16×16, ")
    assert "GiB predicted" in line
    assert "GiB measured (" in line
    monkeypatch.setattr(fit, "available_memory_gib", lambda: 0.0)
    assert "does not fit; training would fall back" in next(check_memory(roots, "901", "tiny", device="cpu"))
    with pytest.raises(PlansError, match="no configuration 'other'"):
        next(check_memory(roots, "901", "tiny", "other"))
