import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from multiprocessing import resource_tracker

import pytest
import team_members
import torch
from test_fold import stop_at
from torch import nn

from biasreg.core.errors import InputError
from biasreg.losses.objective import PairBatch
from biasreg.network.checkpoint import LATEST, load_checkpoint
from biasreg.training.distributed import ALONE, Seat, join_team, seat_from
from biasreg.training.fold import train_fold
from biasreg.training.interruption import TrainingStoppedError
from biasreg.training.launch import launch
from biasreg.training.options import TrainingOptions

CPU = torch.device("cpu")
OPTIONS = TrainingOptions(plans_name="tiny", device="cpu", num_workers=0)


def test_a_process_by_itself_is_a_team_of_one():
    with join_team(ALONE, CPU) as team:
        assert team.is_alone
        assert team.writes
        layer = nn.Linear(1, 1)
        assert team.replicate(layer) is layer
        assert team.mean(torch.tensor(3.0)) == 3
        assert (team.any(True), team.any(False)) == (True, False)
        assert team.collect(team.share([1, 2, 3])) == (1, 2, 3)
        assert team.by_first(lambda: "mine") == "mine"
        assert team.together(lambda: "ours") == "ours"


def test_torchrun_says_where_a_process_sits_and_other_launchers_do_not():
    variables = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert seat_from({**variables, "TORCHELASTIC_RUN_ID": "none"}) == Seat(3, 4, 1, 2)
    assert seat_from(variables) == ALONE
    with pytest.raises(InputError, match="incomplete"):
        seat_from({"TORCHELASTIC_RUN_ID": "none", "RANK": "0"})


@pytest.mark.slow
def test_the_processes_of_a_team_share_work_and_average_gradients(tmp_path):
    assert launch(functools.partial(team_members.talk, folder=tmp_path), 2) == 0
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert (first.pop("writes"), second.pop("writes")) == (True, False)
    assert first == second
    assert first == {
        "mean": 0.5,
        "any": [True, False],
        "collected": [0, 2, 4, 6, 8],
        "first": 0,
        "gradient": 0.5,
        "own": [0, 1],
    }


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(write_dataset, configuration):
    # Offsets of BIAF begin at voxel centres, where the slope of an interpolation jumps: rounding would decide its side.
    single = replace(configuration, network=replace(configuration.network, biaf=False))
    double = replace(single, training=replace(single.training, batch_size=2))
    alone = load_checkpoint(train_fold(write_dataset(double), "901", 0, OPTIONS) / LATEST)
    roots = write_dataset(single)
    options = replace(OPTIONS, overwrite=True)
    assert launch(functools.partial(team_members.train, roots=roots, options=options), 2) == 0
    together = load_checkpoint(roots.results / "Dataset901_Blobs" / "tiny__main" / "fold_0" / LATEST)
    for ours, theirs in zip(together.progress["history"], alone.progress["history"], strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4)
        assert ours["dice_after"] == pytest.approx(theirs["dice_after"], abs=1e-3)
    for name, weight in alone.network.items():
        torch.testing.assert_close(together.network[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_process_without_labels_takes_the_step_of_one_with_labels_and_two_forward_passes(tmp_path, configuration):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((4, 1, 16, 16, 16), generator=generator)
    labels = (3 * images).long()
    labels[1::2] = 0  # the second pair has none
    annotated, mask = torch.tensor([True, False]), torch.ones_like(images[:2])
    batch = PairBatch(*images.split(2), *labels.split(2), annotated, annotated, *[mask] * 4)
    member = functools.partial(team_members.step, folder=tmp_path, configuration=configuration, batch=batch)
    assert launch(member, 2) == 0
    assert member(ALONE) == 0
    first, second, alone = (torch.load(tmp_path / f"{name}.pt") for name in ("0_of_2", "1_of_2", "0_of_1"))
    assert [first[0], second[0], alone[0]] == [2, 1, 2]
    assert first[1] == second[1]
    assert first[1]["taken"]
    assert first[1]["terms"] == pytest.approx(alone[1]["terms"], rel=1e-4)
    torch.testing.assert_close(first[2], second[2], rtol=0, atol=0)
    torch.testing.assert_close(first[2], alone[2], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("return", 7), ("killed", 128 + signal.SIGKILL)])
def test_a_process_that_ends_early_ends_the_others_with_its_code(how, code, caplog):
    assert launch(functools.partial(team_members.fail, how=how), 2) == code
    assert ("process 1 of 2 was ended by SIGKILL, most often because main memory" in caplog.text) == (how == "killed")


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_with_its_traceback(capfd):
    assert launch(functools.partial(team_members.fail, how="raise"), 2) == 1
    assert "RuntimeError: the second process has a bug" in capfd.readouterr().err


@pytest.mark.slow
def test_what_the_first_process_finds_unusable_ends_all_with_one_message(capfd):
    assert launch(functools.partial(team_members.fail, how="unusable"), 2) == 2
    errors = capfd.readouterr().err
    assert errors.count("the first process cannot use this") == 1
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_scheduler_s_signal_reaches_every_process(tmp_path):
    def send():
        while len(list(tmp_path.glob("*.ready"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    assert launch(functools.partial(team_members.wait_for_signal, folder=tmp_path), 2) == 143
    sender.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "when", "name"),
    [
        (signal.SIGTERM, "preparing", "SIGTERM"),
        (signal.SIGINT, "preparing", r"SIGINT (Ctrl-C)"),
        (signal.SIGINT, "starting", r"SIGINT (Ctrl-C)"),
    ],
)
def test_a_signal_before_the_first_step_is_named_once_as_the_cause(tmp_path, caplog, capfd, number, when, name):
    def send():
        started = multiprocessing.active_children if when == "starting" else lambda: list(tmp_path.glob("*.ready"))
        while len(started()) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    assert launch(functools.partial(team_members.prepare, folder=tmp_path), 2) == 128 + number
    sender.join()
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith(f"stopped by {name} ")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_a_signal_before_any_process_is_there_reaches_those_that_are_started(tmp_path, monkeypatch):
    original = resource_tracker.ensure_running

    def interrupted():
        original()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(resource_tracker, "ensure_running", interrupted)
    assert launch(functools.partial(team_members.prepare, folder=tmp_path), 2) == 143


def command(roots, *options):
    return [
        *("901", "0", "-p", "tiny", "-device", "cpu", "--num_workers", "0", *options),
        *(f"--{name}={getattr(roots, name)}" for name in ("raw", "preprocessed", "results")),
    ]


CALL = "import sys; from biasreg.cli.train import main; sys.exit(main(sys.argv[1:]))"


def run(roots, *options):
    """Run the command, and give its exit code with what it said."""
    roots.raw.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    called = [sys.executable, "-c", CALL, *command(roots, *options)]
    result = subprocess.run(called, capture_output=True, text=True, check=False, env=environment)
    assert "leaked" not in result.stderr
    return result.returncode, result.stderr


@pytest.mark.slow
def test_a_program_that_cannot_follow_a_run_ends_all_processes_with_one_message(write_dataset, tmp_path, monkeypatch):
    (tmp_path / "mlflow.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    code, errors = run(write_dataset(), "-num_gpus", "2", "--track", "mlflow")
    assert code == 2, errors
    assert errors.count("MLflow is not installed (not here)") == 1
    assert "Traceback" not in errors


@pytest.mark.slow
def test_what_all_processes_find_unusable_is_said_once_and_leaves_nothing_behind(write_dataset):
    roots = write_dataset()
    code, errors = run(roots, "-num_gpus", "2", "--c")
    assert code == 2, errors
    assert errors.count("there is nothing to resume") == 1
    assert "Traceback" not in errors
    assert not roots.results.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("how", "said"), [("alike", 1), ("apart", 2)])
def test_each_error_of_several_processes_is_said_once(how, said, capfd):
    assert launch(functools.partial(team_members.fail, how=how), 2) == 2
    errors = capfd.readouterr().err
    assert errors.count("error: this cannot be used") == said
    assert "Traceback" not in errors


@pytest.mark.slow
def test_two_processes_that_cannot_go_on_say_so_once(write_dataset, configuration):
    infinite = replace(configuration.training, learning_rate=1e30, iterations_per_epoch=40)
    code, errors = run(write_dataset(replace(configuration, training=infinite)), "-num_gpus", "2")
    assert code == 1
    assert errors.count("error: 21 steps in a row") == 1
    assert errors.count("step skipped") == 21
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_run_on_two_processes_is_stopped_by_a_signal_and_resumed(write_dataset, caplog, monkeypatch):
    roots = write_dataset()
    (roots.raw).mkdir()
    arguments = command(roots, "-num_gpus", "2", "--epochs", "200", "--num_workers", "1")
    folder = roots.results / "Dataset901_Blobs" / "tiny__main" / "fold_0"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", CALL, *arguments], stderr=subprocess.PIPE, env=environment) as running:
        deadline = time.monotonic() + 120
        while running.poll() is None and not (folder / LATEST).is_file() and time.monotonic() < deadline:
            time.sleep(0.2)
        running.terminate()
        errors = running.stderr.read().decode()
    assert running.returncode == 143, errors
    assert errors.count("stopped by SIGTERM") == 1
    assert "leaked" not in errors
    done = load_checkpoint(folder / LATEST).progress["iteration"]
    assert 0 < done < 600
    resumed = replace(OPTIONS, resume=True)  # and by one process, which then has half of the pairs in a step
    stop_at(monkeypatch, done + 4)
    with pytest.raises(TrainingStoppedError):
        train_fold(roots, "901", 0, resumed)
    assert load_checkpoint(folder / LATEST).progress["iteration"] > done
    assert "started by 2 process(es) and goes on with 1: its steps have another number of pairs" in caplog.text


@pytest.mark.slow
def test_torchrun_starts_a_team(write_dataset):
    roots = write_dataset()
    (roots.raw).mkdir()
    script = roots.raw / "train.py"
    script.write_text(f"if __name__ == '__main__':\n    {CALL}\n")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    result = subprocess.run(
        [*launcher, *command(roots)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("epoch 2/2: loss") == 1  # one process speaks
    folder = roots.results / "Dataset901_Blobs" / "tiny__main" / "fold_0"
    assert load_checkpoint(folder / LATEST).progress["iteration"] == 6
