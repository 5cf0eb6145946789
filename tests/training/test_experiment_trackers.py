import json
import logging
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from biasreg.core.errors import InputError
from biasreg.training.experiment_trackers import TrackedRun, metrics_of, trackers
from biasreg.training.observers import EpochRecord

FIRST = EpochRecord(1, 10, 1e-4, {"total": 1.5, "similarity": 0.5}, 2, 0.5, 0.75, 0.02, 0.4, 12.5, 0.1, 0.25)
SECOND = replace(FIRST, epoch=2, losses={"total": 1.25})
SETTINGS = {"dataset": "Dataset901_Blobs", "training": {"epochs": 2, "spacing": [1.0, 2.0]}}


class FakeWriter:
    def __init__(self, folder):
        self.folder, self.scalars, self.closed = folder, [], False

    def add_text(self, name, text):
        self.text = text

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def flush(self):
        pass

    def close(self):
        self.closed = True


class FakeWandb(SimpleNamespace):
    """What `WandbObserver` asks of wandb."""

    Error = type("Error", (Exception,), {})

    def __init__(self, *, logged_in=True, reachable=True):
        super().__init__(begun=[], logged=[], finished=0, logged_in=logged_in, reachable=reachable)

    def setup(self):
        return SimpleNamespace(settings=SimpleNamespace(project=None))

    def init(self, **options):
        if not self.logged_in:
            raise self.Error("no API key")
        self.begun.append(options)
        return SimpleNamespace(id=options.get("id") or f"run{len(self.begun)}", log=self.log, finish=self.finish)

    def log(self, metrics, step):
        if not self.reachable:
            raise ConnectionError("the network is down")
        self.logged.append((step, metrics["loss/total"]))

    def finish(self):
        self.finished += 1


class FakeMlflow(SimpleNamespace):
    """What `MlflowObserver` asks of mlflow."""

    def __init__(self):
        super().__init__(begun=[], parameters=[], logged=[], ended=0)

    def start_run(self, run_id, run_name):
        self.begun.append((run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or f"run{len(self.begun)}"))

    def log_params(self, parameters):
        self.parameters.append(parameters)

    def log_metrics(self, metrics, step):
        self.logged.append((step, metrics["loss/total"]))

    def end_run(self):
        self.ended += 1


@pytest.fixture
def install(monkeypatch):
    """Return a function that puts a stand-in in the place of a package."""

    def put(name, module):
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return put


def test_numbers_are_grouped_and_unknown_ones_left_out():
    assert metrics_of(FIRST)["loss/similarity"] == 0.5
    assert metrics_of(FIRST)["time/step_seconds"] == 0.25
    unlabelled = metrics_of(replace(FIRST, dice_before=None, dice_after=None, step_seconds=None))
    assert not [name for name in unlabelled if "dice" in name or "step_seconds" in name]


@pytest.mark.parametrize(
    ("name", "module", "remedy"),
    [
        ("tensorboard", "torch.utils.tensorboard", r"pip install -c constraints\.txt -e \"\.\[tensorboard\]\""),
        ("wandb", "wandb", "pip install wandb"),
        ("mlflow", "mlflow", "pip install mlflow"),
    ],
)
def test_a_program_that_is_not_installed_is_named_with_the_way_to_install_it(name, module, remedy, install, tmp_path):
    install(module, None)  # an import of it now fails, as if it were missing
    with pytest.raises(InputError, match=rf"is not installed.*{remedy}.*leave it out of --track"):
        trackers((name,), TrackedRun(tmp_path, "run", SETTINGS, False))


def test_an_unknown_program_is_refused_and_the_known_ones_named(tmp_path):
    with pytest.raises(InputError, match=r"no tracker is called comet · there are: tensorboard, wandb, mlflow"):
        trackers(("comet",), TrackedRun(tmp_path, "run", SETTINGS, False))
    assert trackers((), TrackedRun(tmp_path, "run", SETTINGS, False)) == ()


def test_tensorboard_holds_what_the_checkpoint_knows_and_the_epochs_since(install, tmp_path):
    writers = []

    def make(folder):
        writers.append(FakeWriter(folder))
        return writers[-1]

    install("torch.utils.tensorboard", SimpleNamespace(SummaryWriter=make))
    stale = tmp_path / "tensorboard" / "events.out.tfevents.1"
    stale.parent.mkdir()
    stale.touch()
    (observer,) = trackers(("tensorboard", "tensorboard"), TrackedRun(tmp_path, "run", SETTINGS, False))
    assert not writers
    observer.on_start((FIRST,))
    observer.on_epoch_end((FIRST, SECOND))
    observer.on_end()
    (writer,) = writers
    assert not stale.exists()
    assert [(value, step) for name, value, step in writer.scalars if name == "loss/total"] == [(1.5, 1), (1.25, 2)]
    assert '"spacing"' in writer.text
    assert writer.closed


def test_real_tensorboard_files_can_be_read_back(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (observer,) = trackers(("tensorboard",), TrackedRun(tmp_path, "run", SETTINGS, False))
    observer.on_start(())
    observer.on_epoch_end((FIRST,))
    observer.on_end()
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("validation/dice_after")] == [(1, 0.75)]


def test_a_new_run_begins_and_a_resumed_one_goes_on_under_its_name_in_wandb(install, tmp_path):
    wandb = install("wandb", FakeWandb())
    for history in ((), (FIRST,), ()):
        (observer,) = trackers(("wandb",), TrackedRun(tmp_path, "Blobs fold_0", SETTINGS, bool(history)))
        observer.on_start(history)
        observer.on_epoch_end((*history, SECOND if history else FIRST))
        observer.on_end()
    assert [options.get("id") for options in wandb.begun] == [None, "run1", None]
    assert wandb.begun[0] == {
        "project": "biasreg",
        "name": "Blobs fold_0",
        "dir": str(tmp_path),
        "config": SETTINGS,
    }
    assert wandb.logged == [(1, 1.5), (2, 1.25), (1, 1.5)]
    assert wandb.finished == 3
    assert json.loads((tmp_path / "tracked_runs.json").read_text()) == {"wandb": "run3"}


def test_without_a_login_training_does_not_begin(install, tmp_path):
    install("wandb", FakeWandb(logged_in=False))
    with pytest.raises(InputError, match=r"does not begin a run: no API key · log in by `wandb login`.*--track"):
        trackers(("wandb",), TrackedRun(tmp_path, "run", SETTINGS, False))


def test_a_network_that_fails_later_does_not_stop_training(install, tmp_path, caplog):
    install("wandb", FakeWandb(reachable=False))
    (observer,) = trackers(("wandb",), TrackedRun(tmp_path, "run", SETTINGS, False))
    observer.on_start(())
    with caplog.at_level(logging.WARNING, logger="biasreg"):
        observer.on_epoch_end((FIRST,))
    assert "Weights & Biases did not take note of the run: ConnectionError: the network is down" in caplog.text


def test_mlflow_gets_flat_parameters_once_and_the_numbers_of_each_epoch(install, tmp_path):
    mlflow = install("mlflow", FakeMlflow())
    settings = SETTINGS | {"many": {str(number): number for number in range(120)}, "long": "x" * 900}
    for history in ((), (FIRST,)):
        (observer,) = trackers(("mlflow",), TrackedRun(tmp_path, "Blobs fold_0", settings, bool(history)))
        observer.on_start(history)
        observer.on_epoch_end((*history, SECOND if history else FIRST))
        observer.on_end()
    assert mlflow.begun == [(None, "Blobs fold_0"), ("run1", None)]
    assert [len(each) for each in mlflow.parameters] == [100, 24]
    sent = mlflow.parameters[0] | mlflow.parameters[1]
    assert sent["training.spacing"] == "[1.0, 2.0]"
    assert len(sent["long"]) == 500
    assert mlflow.logged == [(1, 1.5), (2, 1.25)]
    assert mlflow.ended == 2
