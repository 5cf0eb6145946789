import json
import logging
from dataclasses import replace

import pytest

from biasreg.core.serialization import from_json
from biasreg.training.observers import (
    EpochLog,
    EpochRecord,
    MetricsFile,
    describe,
    describe_seconds,
    remaining_seconds,
    run_log,
)
from biasreg.training.progress_figure import ProgressFigure, draw_progress

FIRST = EpochRecord(
    epoch=1,
    iteration=10,
    learning_rate=1e-4,
    losses={"total": 1.5, "similarity": 0.5},
    skipped_steps=0,
    dice_before=0.5,
    dice_after=0.75,
    folding_percent=0.02,
    similarity_loss=0.4,
    seconds=12.5,
    data_wait_fraction=0.1,
)
SECOND = replace(FIRST, epoch=2, iteration=20, losses={"total": 1.25, "similarity": 0.25})
UNLABELLED = replace(FIRST, dice_before=None, dice_after=None, skipped_steps=2)


def read(path):
    return [from_json(EpochRecord, json.loads(line)) for line in path.read_text().splitlines()]


def test_metrics_hold_one_strict_json_object_per_epoch(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.on_start(())
    metrics.on_epoch_end((FIRST,))
    metrics.on_epoch_end((FIRST, SECOND))
    assert read(tmp_path / "metrics.jsonl") == [FIRST, SECOND]


def test_a_resumed_run_does_not_repeat_epochs_that_its_checkpoint_lacks(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.on_start(())
    metrics.on_epoch_end((FIRST,))
    metrics.on_epoch_end((FIRST, SECOND))  # killed before the checkpoint of epoch 2
    resumed = MetricsFile(path)
    resumed.on_start((FIRST,))
    resumed.on_epoch_end((FIRST, SECOND))
    assert read(path) == [FIRST, SECOND]


def test_the_line_of_an_epoch_says_what_matters():
    assert describe(FIRST, 5) == (
        "epoch 1/5: loss 1.5000 (similarity 0.5000) | Dice 0.5000 -> 0.7500 | folding 0.020 % | "
        "12.5 s, 10% of it waiting for data"
    )
    assert "validation similarity loss 0.4000" in describe(UNLABELLED, 5)
    assert "2 steps skipped" in describe(UNLABELLED, 5)
    assert "no step was taken" in describe(replace(FIRST, losses={}), 5)
    assert "12.5 s (0.250 s a step), 10%" in describe(replace(FIRST, step_seconds=0.25), 5)


def test_the_remaining_time_follows_the_median_of_the_last_five_epochs(caplog):
    durations = (900.0, 60.0, 70.0, 500.0, 50.0, 60.0)
    history = tuple(replace(FIRST, epoch=number, seconds=each) for number, each in enumerate(durations, 1))
    assert remaining_seconds(history, 10) == 4 * 60
    assert remaining_seconds(history, 6) == 0
    with caplog.at_level(logging.INFO, logger="biasreg"):
        EpochLog(10).on_epoch_end(history)
        EpochLog(6).on_epoch_end(history)
    running, finished = caplog.messages
    assert running.endswith(" | ETA 4 min")
    assert "ETA" not in finished


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3599, "1 h 00 min"),
        (3 * 3600 + 300, "3 h 05 min"),
        (52 * 3600, "2 d 04 h"),
    ],
)
def test_a_duration_is_said_in_its_two_largest_units(seconds, text):
    assert describe_seconds(seconds) == text


def test_a_record_of_before_the_steps_were_timed_is_still_read():
    known = json.loads(json.dumps({**FIRST.__dict__}))
    del known["step_seconds"]
    assert from_json(EpochRecord, known) == FIRST


def test_the_log_keeps_what_the_package_says_and_grows_on_resume(tmp_path):
    for epoch in (FIRST, SECOND):
        with run_log(tmp_path / "fold_0") as path:
            EpochLog(2).on_epoch_end((epoch,))
            logging.getLogger("biasreg.training.other").warning("a warning")
    text = path.read_text()
    assert text.index("epoch 1/2") < text.index("epoch 2/2")
    assert text.count("WARNING biasreg.training.other: a warning") == 2
    logging.getLogger("biasreg.training.other").warning("after the run")
    assert path.read_text() == text


def test_the_figure_shows_every_quantity(tmp_path):
    figure = draw_progress((FIRST, SECOND))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:3] == ["loss terms (unweighted)", "validation Dice", "folding voxels (%)"]
    lines = {line.get_label(): list(line.get_ydata()) for axes in figure.axes for line in axes.lines}
    assert lines["total"] == [1.5, 1.25]
    assert lines["before"] == [0.5, 0.5]
    assert lines["after"] == [0.75, 0.75]
    ProgressFigure(tmp_path / "progress.png").on_epoch_end((FIRST, SECOND))
    assert (tmp_path / "progress.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_does_without_labels_and_without_steps():
    figure = draw_progress((UNLABELLED, replace(UNLABELLED, epoch=2, losses={}, folding_percent=None)))
    assert not figure.axes[1].lines
