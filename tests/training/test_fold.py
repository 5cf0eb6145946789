import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from filelock import FileLock

from biasreg.core.errors import CheckpointError, DatasetError, InputError, PlansError, TrainingError
from biasreg.core.serialization import file_hash, from_json, read_record
from biasreg.network.checkpoint import BEST, LATEST, load_checkpoint
from biasreg.training import assembly
from biasreg.training import fold as fold_module
from biasreg.training.fold import train_fold
from biasreg.training.interruption import TrainingStoppedError
from biasreg.training.observers import EpochRecord
from biasreg.training.options import TrainingOptions
from biasreg.training.validation import ValidationResult
from biasreg.training.workers import open_batches

OPTIONS = TrainingOptions(plans_name="tiny", device="cpu", num_workers=0)
RESUME = replace(OPTIONS, resume=True)
MEASURED_TIMES = {"seconds": 0.0, "data_wait_fraction": 0.0, "step_seconds": None}


def history(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [replace(from_json(EpochRecord, json.loads(line)), **MEASURED_TIMES) for line in lines]


def stop_at(monkeypatch, iteration, number=signal.SIGINT):
    """Send a signal to this process when the batch of an iteration is drawn."""

    @contextmanager
    def open_and_stop(source, sampler, settings, start):
        def watched(batches):
            for index, batch in enumerate(batches, start):
                if index == iteration:
                    os.kill(os.getpid(), number)
                yield batch

        with open_batches(source, sampler, settings, start) as batches:
            yield watched(batches)

    monkeypatch.setattr(assembly, "open_batches", open_and_stop)


def assert_same_run(ours, theirs):
    assert history(ours) == history(theirs)
    first, second = load_checkpoint(ours / LATEST), load_checkpoint(theirs / LATEST)
    torch.testing.assert_close(first.network, second.network, rtol=0, atol=0)
    torch.testing.assert_close(first.averaged, second.averaged, rtol=0, atol=0)
    torch.testing.assert_close(first.optimizer, second.optimizer, rtol=0, atol=0)


def test_without_a_part_the_model_has_a_folder_of_its_own(write_dataset):
    roots = write_dataset()
    whole = train_fold(roots, "901", 0, replace(OPTIONS, epochs=1))
    without = train_fold(roots, "901", 0, replace(OPTIONS, epochs=1, ablate=("mac", "biaf")))
    assert (whole.parent.name, without.parent.name) == ("tiny__main", "tiny__main-ablate-biaf-mac")
    parts = {part: [part in name for name in load_checkpoint(without / BEST).network] for part in ("query", "offset")}
    assert not any(parts["query"] + parts["offset"])
    trained = load_checkpoint(without / BEST).identity.configuration.network
    assert (trained.biaf, trained.mac) == (False, False)


def test_deterministic_kernels_are_chosen_for_the_run_that_asks_for_them(write_dataset):
    roots, seen = write_dataset(), []

    @contextmanager
    def watching(*arguments):
        seen.append(torch.are_deterministic_algorithms_enabled())
        with open_batches(*arguments) as batches:
            yield batches

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "open_batches", watching)
        train_fold(roots, "901", 0, replace(OPTIONS, epochs=1, deterministic=True))
        train_fold(roots, "901", 1, replace(OPTIONS, epochs=1))
    assert seen == [True, False]


def test_a_fold_is_trained_with_nothing_but_its_number(write_dataset):
    folder = train_fold(write_dataset(), "901", 0, OPTIONS)
    assert folder.parts[-3:] == ("Dataset901_Blobs", "tiny__main", "fold_0")
    files = {path.name for path in folder.iterdir()}
    assert files == {
        ".lock",
        "checkpoint_best.pth",
        "checkpoint_latest.pth",
        "metrics.jsonl",
        "progress.png",
        "training_log.txt",
        "validation.json",
    }
    log = (folder / "training_log.txt").read_text()
    assert "device: cpu" in log
    assert "epoch 2/2: loss" in log
    assert [record.epoch for record in history(folder)] == [1, 2]
    validation = read_record(folder / "validation.json", ValidationResult)
    assert validation.held_out == "both"
    assert {pair.fixed for pair in validation.pairs} == {"case0", "case1"}
    assert load_checkpoint(folder / BEST).identity == load_checkpoint(folder / LATEST).identity


def test_two_runs_of_one_seed_are_the_same_and_another_seed_is_not(write_dataset):
    roots = write_dataset()
    first = history(train_fold(roots, "901", 0, OPTIONS))
    assert first == history(train_fold(roots, "901", 0, replace(OPTIONS, overwrite=True, num_workers=2)))
    assert first != history(train_fold(roots, "901", 0, replace(OPTIONS, overwrite=True, seed=1)))


@pytest.mark.parametrize("iteration", [2, 4, 5], ids=["end of an epoch", "within an epoch", "end of the run"])
def test_a_resumed_run_goes_exactly_the_way_of_an_uninterrupted_one(write_dataset, monkeypatch, tmp_path, iteration):
    whole = write_dataset()
    parts = replace(whole, results=tmp_path / "interrupted")
    expected = train_fold(whole, "901", 0, OPTIONS)
    with monkeypatch.context() as patch:
        stop_at(patch, iteration)
        with pytest.raises(
            TrainingStoppedError, match=rf"stopped by SIGINT \(Ctrl-C\) after {iteration + 1} of 6 iterations"
        ):
            train_fold(parts, "901", 0, OPTIONS)
    torch.manual_seed(99)  # a new process begins in another state
    assert_same_run(train_fold(parts, "901", 0, RESUME), expected)


def test_a_run_killed_between_two_checkpoints_resumes_from_the_last(write_dataset, monkeypatch, tmp_path):
    whole = write_dataset()
    parts = replace(whole, results=tmp_path / "killed")
    expected = train_fold(whole, "901", 0, OPTIONS)
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        patch.setattr("biasreg.training.trainer.Trainer._leave", lambda trainer, stop: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_fold(parts, "901", 0, OPTIONS)
    folder = parts.results / "Dataset901_Blobs" / "tiny__main" / "fold_0"
    (folder / ".0a1b2c3d-checkpoint_latest.pth").write_bytes(b"half a checkpoint")
    assert_same_run(train_fold(parts, "901", 0, RESUME), expected)
    assert [path.name for path in folder.glob(".*")] == [".lock"]


def test_a_trained_fold_is_neither_overwritten_nor_restarted_silently(write_dataset):
    roots = write_dataset()
    folder = train_fold(roots, "901", 0, OPTIONS)
    before = (folder / LATEST).read_bytes()
    with pytest.raises(CheckpointError, match=r"trained before.*--c to resume.*--overwrite"):
        train_fold(roots, "901", 0, OPTIONS)
    assert (folder / LATEST).read_bytes() == before
    train_fold(roots, "901", 0, replace(OPTIONS, overwrite=True, epochs=1))
    assert [record.epoch for record in history(folder)] == [1]


def test_scores_that_a_finished_run_could_not_write_are_written_when_it_is_resumed(write_dataset, monkeypatch):
    roots = write_dataset()

    def fail(path, record):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("biasreg.training.trainer.write_record", fail)
        folder = train_fold(roots, "901", 0, OPTIONS)
    assert not (folder / "validation.json").exists()
    train_fold(roots, "901", 0, RESUME)
    assert read_record(folder / "validation.json", ValidationResult).pairs


def test_a_finished_run_is_not_trained_further(write_dataset):
    roots = write_dataset()
    folder = train_fold(roots, "901", 0, OPTIONS)
    before = (folder / LATEST).read_bytes()
    assert train_fold(roots, "901", 0, RESUME) == folder
    assert "this run is finished" in (folder / "training_log.txt").read_text()
    assert (folder / LATEST).read_bytes() == before


def test_resuming_nothing_is_an_error(write_dataset):
    with pytest.raises(CheckpointError, match=r"nothing to resume.*leave --c out"):
        train_fold(write_dataset(), "901", 0, RESUME)


def test_a_resumed_run_keeps_its_settings_and_refuses_others(write_dataset, monkeypatch):
    roots = write_dataset()
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        with pytest.raises(TrainingStoppedError):
            train_fold(roots, "901", 0, replace(OPTIONS, epochs=3, iterations_per_epoch=2, seed=7))
    with pytest.raises(InputError, match=r"--epochs 5 contradicts.*started with 3"):
        train_fold(roots, "901", 0, replace(RESUME, epochs=5))
    folder = train_fold(roots, "901", 0, replace(RESUME, seed=7))
    assert [record.iteration for record in history(folder)] == [2, 4, 6]


def test_a_checkpoint_of_other_plans_is_refused(write_dataset, configuration):
    train_fold(write_dataset(), "901", 0, OPTIONS)
    other = replace(configuration, training=replace(configuration.training, learning_rate=0.5))
    with pytest.raises(CheckpointError, match="another configuration"):
        train_fold(write_dataset(other), "901", 0, RESUME)


def test_fold_all_says_that_its_scores_are_not_held_out(write_dataset):
    folder = train_fold(write_dataset(), "901", "all", OPTIONS)
    assert folder.name == "fold_all"
    assert "NOT held out" in (folder / "training_log.txt").read_text()
    assert read_record(folder / "validation.json", ValidationResult).held_out == "none"


def test_a_dataset_without_labels_is_trained_and_scored_by_similarity(write_dataset, configuration):
    plain = replace(configuration, network=replace(configuration.network, num_labels=1))
    folder = train_fold(write_dataset(plain, annotated=False), "901", 0, OPTIONS)
    for record in history(folder):
        assert record.dice_after is None
        assert record.similarity_loss is not None
    assert (folder / BEST).is_file()


def test_nothing_is_written_when_the_data_cannot_be_used(write_dataset):
    roots = write_dataset(cases=4)
    with pytest.raises(DatasetError, match="run `biasreg_plan_and_preprocess -d 77 -p tiny`"):
        train_fold(roots, "77", 0, OPTIONS)
    with pytest.raises(InputError, match="no fold 9"):
        train_fold(roots, "901", 9, OPTIONS)
    assert not roots.results.exists()


@pytest.mark.parametrize(
    ("wrong", "text"), [({"epochs": 0}, "epochs is 0"), ({"seed": -1}, "seed is -1"), ({"overwrite": True}, "--c")]
)
def test_options_that_make_no_sense_are_refused(wrong, text):
    with pytest.raises(InputError, match=text):
        TrainingOptions(resume=True, **wrong)


def test_training_needs_no_medical_image_reader():
    code = "import sys; sys.modules |= {'SimpleITK': None, 'nibabel': None}; import biasreg.training.fold"
    subprocess.run([sys.executable, "-c", code], check=True)


def start(roots, *arguments):
    flags = [f"--{name}={getattr(roots, name)}" for name in ("raw", "preprocessed", "results")]
    command = ["901", "0", "-p", "tiny", "--device=cpu", "--num_workers=1", *arguments, *flags]
    code = "from biasreg.cli.train import main; raise SystemExit(main())"
    options = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen([sys.executable, "-c", code, *command], **options)


def wait_for_epochs(folder, count):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        path = folder / "metrics.jsonl"
        if path.is_file() and len(path.read_text().splitlines()) >= count:
            return
        time.sleep(0.1)
    raise TimeoutError(f"{folder} has no {count} epochs")


@pytest.mark.slow
def test_the_command_stops_at_signals_with_the_codes_of_shells_survives_a_kill_and_resumes(write_dataset):
    roots = write_dataset()
    folder = roots.results / "Dataset901_Blobs" / "tiny__main" / "fold_0"
    epochs = 0
    for arguments, number, code in (
        (["--epochs=500", "--iterations_per_epoch=2"], signal.SIGINT, 130),
        (["--c"], signal.SIGKILL, -9),
        (["--c"], signal.SIGTERM, 143),
    ):
        with start(roots, *arguments) as process:
            wait_for_epochs(folder, epochs + 2)
            os.killpg(process.pid, number)  # as terminals and schedulers do: workers get it too
            assert process.wait(timeout=60) == code, process.stderr.read()
            if number != signal.SIGKILL:
                assert "resume with the same command and --c" in process.stderr.read()
        checkpoint = load_checkpoint(folder / LATEST)
        assert checkpoint.progress["iteration"] >= 2 * (epochs + 1)
        epochs = len(checkpoint.progress["history"])
    assert [record.epoch for record in history(folder)] == list(range(1, epochs + 1))


def test_a_run_is_not_resumed_on_other_cases(write_dataset):
    roots = write_dataset(cases=6)
    train_fold(roots, "901", 0, OPTIONS)
    path = roots.preprocessed / "Dataset901_Blobs" / "splits_final.json"
    folds = json.loads(path.read_text())
    folds[0] = {"train": folds[0]["train"][1:], "validation": [*folds[0]["validation"], folds[0]["train"][0]]}
    path.write_text(json.dumps(folds))
    with pytest.raises(CheckpointError, match="cases of fold 0 have changed"):
        train_fold(roots, "901", 0, replace(OPTIONS, resume=True))


def aligned_dataset(write_dataset, configuration):
    """Write a dataset whose cases were aligned to a reference image; training only hashes that."""
    aligned = replace(configuration.preprocessing, prealignment="affine", reference_case="case0")
    roots = write_dataset(replace(configuration, preprocessing=aligned))
    reference = roots.preprocessed / "Dataset901_Blobs" / "tiny_main" / "reference.nii.gz"
    reference.write_bytes(b"reference")
    return roots, reference


def test_a_checkpoint_knows_the_reference_image_and_is_not_resumed_with_another(write_dataset, configuration):
    roots, reference = aligned_dataset(write_dataset, configuration)
    folder = train_fold(roots, "901", 0, replace(OPTIONS, epochs=1))
    for name in (LATEST, BEST):
        assert load_checkpoint(folder / name).identity.reference_hash == file_hash(reference)
    reference.write_bytes(b"another")
    with pytest.raises(CheckpointError, match=r"reference image .* is not the one that this fold was trained with"):
        train_fold(roots, "901", 0, RESUME)
    assert (folder.parent / "reference.nii.gz").read_bytes() == b"reference"
    reference.unlink()
    with pytest.raises(PlansError, match=r"reference .* is missing · .*reference\.nii\.gz"):
        train_fold(roots, "901", 0, RESUME)


def test_results_that_cannot_be_written_are_refused_before_any_work(write_dataset, monkeypatch):
    roots = write_dataset()
    roots.results.write_text("a file")
    monkeypatch.setattr(fold_module, "read_fold_data", lambda *arguments: pytest.fail("the data are read"))
    with pytest.raises(InputError, match=r"nothing can be written to .*fold_0: .*results is a file · .*--results"):
        train_fold(roots, "901", 0, OPTIONS)


def test_a_run_that_no_tracker_takes_leaves_the_trained_fold_alone(write_dataset, monkeypatch):
    roots = write_dataset()
    folder = train_fold(roots, "901", 0, replace(OPTIONS, epochs=1))
    before = file_hash(folder / LATEST)

    def refuse(names, run):
        raise InputError("no login")

    monkeypatch.setattr(assembly, "trackers", refuse)
    with pytest.raises(InputError, match="no login"):
        train_fold(roots, "901", 0, replace(OPTIONS, overwrite=True, track=("wandb",)))
    assert file_hash(folder / LATEST) == before


def test_a_checkpoint_without_averaged_weights_is_not_resumed(write_dataset):
    roots = write_dataset()
    folder = train_fold(roots, "901", 0, replace(OPTIONS, epochs=1))
    content = torch.load(folder / LATEST, weights_only=True)
    content["averaged"] = None
    content["identity"]["run"]["epochs"] = 2
    torch.save(content, folder / LATEST)
    with pytest.raises(TrainingError, match="holds no averaged weights"):
        train_fold(roots, "901", 0, RESUME)


def test_a_fold_is_trained_by_one_run_at_a_time(write_dataset):
    roots = write_dataset()
    folder = roots.results / "Dataset901_Blobs" / "tiny__main" / "fold_0"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"), pytest.raises(InputError, match=r"another training of this fold is running"):
        train_fold(roots, "901", 0, OPTIONS)
    assert [path.name for path in folder.iterdir()] == [".lock"]
    train_fold(roots, "901", 0, replace(OPTIONS, epochs=1))
