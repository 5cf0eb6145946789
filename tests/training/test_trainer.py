import errno
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from biasreg.core.errors import TrainingError
from biasreg.losses.objective import ObjectiveSettings
from biasreg.network.build import build_network
from biasreg.network.checkpoint import BEST, LATEST, Identity, RunSettings, load_checkpoint
from biasreg.training.data import CaseSource, LoaderSettings
from biasreg.training.optimization import build_optimizer
from biasreg.training.recipe import Home, Recipe, TrainingData
from biasreg.training.sampling import PairSampler
from biasreg.training.trainer import Trainer
from biasreg.training.validation import Validation
from biasreg.training.workers import open_batches

EPOCHS, ITERATIONS = 2, 3


@pytest.fixture
def make_trainer(write_dataset, configuration, tmp_path):
    """Return a function that makes a trainer on two cases; `changes` alter the recipe."""
    roots = write_dataset(cases=6)
    source = CaseSource(
        roots.preprocessed / "Dataset901_Blobs" / "tiny_main", {f"case{index}": True for index in range(6)}
    )
    sampler = PairSampler({"case0": "0", "case1": "1"}, "inter-subject")
    plans = configuration.training

    def make(folder="fold_0", open_stream=None, observers=(), **changes):
        settings = ObjectiveSettings("lncc", 5, plans.weights, configuration.preprocessing.spacing, 3, 2)
        recipe = Recipe(
            epochs=EPOCHS,
            iterations_per_epoch=ITERATIONS,
            seed=0,
            learning_rate=1e-3,
            learning_rate_power=0.9,
            learning_rate_warmup=0.0,
            gradient_clip=12.0,
            averaging_decay=0.9,
            consistency_warmup=0.1,
            consistency_interval=1,
            validate_every=1,
            picture_every=0,
            augmentation=plans.augmentation,
            objective=settings,
        )
        recipe = replace(recipe, **changes)
        loader = LoaderSettings(1, 0, 0.5, 0)
        torch.manual_seed(0)
        network = build_network(configuration.network)
        (tmp_path / folder).mkdir(exist_ok=True)
        identity = Identity(
            "Dataset901_Blobs", "tiny", "main", configuration, None, RunSettings(0, EPOCHS, ITERATIONS, 0, "cases")
        )
        data = TrainingData(
            open_stream or (lambda start: open_batches(source, sampler, loader, start)),
            Validation(source, (("case2", "case3"),), "both", settings),
        )
        home = Home(tmp_path / folder, identity)
        return Trainer(network, build_optimizer(network, 1e-3), recipe, data, home, observers)

    return make


class Watcher:
    def __init__(self):
        self.calls = []

    def on_start(self, history):
        self.calls.append(("start", len(history)))

    def on_epoch_end(self, history):
        self.calls.append(("epoch", history[-1].epoch))

    def on_end(self):
        self.calls.append(("end",))


def test_a_run_does_every_step_tells_observers_and_leaves_both_checkpoints(make_trainer):
    watcher = Watcher()
    trainer = make_trainer(observers=[watcher])
    trainer.run()
    assert trainer.progress.iteration == EPOCHS * ITERATIONS
    assert watcher.calls == [("start", 0), ("epoch", 1), ("epoch", 2), ("end",)]
    for record in trainer.progress.history:
        assert set(record.losses) == {"total", "similarity", "smoothness", "overlap", "segmentation", "consistency"}
        assert record.dice_before is not None
        assert 0 < record.data_wait_fraction < 1
    folder = trainer.home.folder
    assert load_checkpoint(folder / LATEST).optimizer is not None
    assert load_checkpoint(folder / BEST).optimizer is None
    assert (folder / "validation.json").is_file()


def test_the_best_checkpoint_is_that_of_the_best_epoch(make_trainer):
    trainer = make_trainer()
    trainer.run()
    scores = [record.dice_after - 10 * record.folding_percent / 100 for record in trainer.progress.history]
    best = load_checkpoint(trainer.home.folder / BEST)
    assert best.progress["history"][-1]["epoch"] == trainer.progress.best.epoch == 1 + scores.index(max(scores))


def test_validation_can_be_rarer_but_comes_at_the_end(make_trainer):
    trainer = make_trainer(epochs=3, iterations_per_epoch=1, validate_every=2)
    trainer.run()
    assert [record.dice_after is not None for record in trainer.progress.history] == [False, True, True]


def test_before_any_validation_the_checkpoint_for_prediction_is_that_of_the_last_epoch(make_trainer):
    class Reader(Watcher):
        def on_epoch_end(self, history):
            self.calls.append(load_checkpoint(trainer.home.folder / BEST).epochs_done)

    reader = Reader()
    trainer = make_trainer(observers=[reader], epochs=4, iterations_per_epoch=1, validate_every=4)
    trainer.run()
    assert reader.calls == [("start", 0), 1, 2, 3, 4, ("end",)]


def test_a_checkpoint_of_the_best_epoch_cannot_be_resumed(make_trainer):
    trainer = make_trainer()
    trainer.run()
    with pytest.raises(TrainingError, match="without optimiser"):
        trainer.restore(load_checkpoint(trainer.home.folder / BEST))


def test_restoring_brings_back_weights_progress_and_random_state(make_trainer):
    trainer = make_trainer()
    trainer.run()
    checkpoint = load_checkpoint(trainer.home.folder / LATEST)
    torch.manual_seed(99)
    other = make_trainer(folder="fold_1")
    other.restore(checkpoint)
    assert other.progress == trainer.progress
    assert torch.equal(torch.get_rng_state(), checkpoint.random_states["cpu"])
    torch.testing.assert_close(other.network.state_dict(), trainer.network.state_dict(), rtol=0, atol=0)


def test_images_that_are_not_finite_are_skipped_and_end_training_by_name(make_trainer, caplog):
    healthy = make_trainer().data.open_batches

    @contextmanager
    def spoiled(start):
        with healthy(start) as batches:
            yield (batch._replace(moving=batch.moving * float("nan")) for batch in batches)

    trainer = make_trainer(open_stream=spoiled, iterations_per_epoch=50)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    with pytest.raises(TrainingError, match=r"21 steps in a row.*case\d -> case\d"):
        trainer.run()
    torch.testing.assert_close(dict(trainer.network.state_dict()), before, rtol=0, atol=0)
    assert caplog.text.count("step skipped") == 21


def test_a_single_bad_pair_is_survived_and_counted(make_trainer):
    healthy = make_trainer().data.open_batches

    @contextmanager
    def spoiled(start):
        with healthy(start) as batches:
            yield (
                batch._replace(fixed=batch.fixed * float("nan")) if index == 1 else batch
                for index, batch in enumerate(batches)
            )

    trainer = make_trainer(open_stream=spoiled)
    trainer.run()
    assert [record.skipped_steps for record in trainer.progress.history] == [1, 0]


def test_a_record_that_cannot_be_written_does_not_end_the_run(make_trainer, caplog):
    class Failing(Watcher):
        def on_epoch_end(self, history):
            raise OSError("disk quota exceeded")

    trainer = make_trainer(observers=[Failing()])
    trainer.run()
    assert trainer.is_finished
    assert "disk quota exceeded" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("tried to allocate 80 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        RuntimeError("MPS backend out of memory"),
    ],
)
def test_a_device_without_enough_memory_is_reported_with_the_pair(make_trainer, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    trainer = make_trainer()
    monkeypatch.setattr("biasreg.training.trainer.objective", fail)
    with pytest.raises(TrainingError, match=r"does not hold a training step.*case\d -> case\d.*less memory"):
        trainer.run()


def test_scores_that_cannot_be_written_lose_neither_the_checkpoint_nor_the_run(make_trainer, monkeypatch, caplog):
    def fail(path, record):
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer = make_trainer(epochs=1)
    monkeypatch.setattr("biasreg.training.trainer.write_record", fail)
    trainer.run()
    assert load_checkpoint(trainer.home.folder / LATEST).epochs_done == 1
    assert "the scores of the best epoch could not be written: [Errno 28] No space left on device" in caplog.text


@pytest.mark.slow
def test_overfitting_one_pair_raises_its_dice(make_trainer, configuration):
    still = replace(configuration.training.augmentation, probability=0.0)
    trainer = make_trainer(epochs=1, iterations_per_epoch=120, learning_rate=3e-3, augmentation=still)
    validation = replace(trainer.data.validation, pairs=(("case0", "case1"), ("case1", "case0")))
    trainer.data = trainer.data._replace(validation=validation)
    trainer.run()
    (record,) = trainer.progress.history
    assert record.dice_after > record.dice_before + 0.1
    assert record.folding_percent < 1
