import json
import math

import pytest

from biasreg.core.serialization import from_json, to_json
from biasreg.training.optimization import StepOutcome
from biasreg.training.progress import Progress
from biasreg.training.validation import PairScore, ValidationResult

RESULT = ValidationResult(1, "both", (PairScore("a", "b", 0.5, 0.75, 0.01, 0.25),))


def test_a_term_that_is_not_in_every_step_is_averaged_over_those_that_have_it():
    progress = Progress()
    for consistency in (0.0, 0.3, 0.0, 0.5):
        progress.count(
            StepOutcome(True, 1.0, 1.0, {"similarity": 0.5, "consistency": consistency, "segmentation": 0.0})
        )
    progress.close_epoch(1e-4, RESULT)
    losses = progress.history[0].losses
    assert losses == {"total": 1.0, "similarity": 0.5, "consistency": pytest.approx(0.4), "segmentation": 0.0}
    progress.count(StepOutcome(True, 1.0, 1.0, {"consistency": 0.1}))
    progress.close_epoch(1e-4, RESULT)
    assert progress.history[1].losses["consistency"] == 0.1


def test_an_epoch_that_an_older_version_began_is_averaged_over_its_steps():
    progress = from_json(Progress, {"iteration": 100, "sums": {"total": 100.0}, "taken": 100}, where="latest")
    progress.count(StepOutcome(True, 1.0, 1.0, {}))
    progress.close_epoch(1e-4, RESULT)
    assert progress.history[0].losses == {"total": 1.0}


def test_an_epoch_averages_the_steps_that_were_taken():
    progress = Progress()
    progress.count(StepOutcome(True, 1.0, 1.0, {"similarity": 0.5}))
    progress.count(StepOutcome(False, math.nan, math.nan, {"similarity": math.nan}))
    assert progress.skipped_in_a_row == 1
    progress.count(StepOutcome(True, 2.0, 1.0, {"similarity": 1.0}))
    progress.seconds, progress.waiting = 4.0, 1.0
    progress.close_epoch(1e-4, RESULT)
    (record,) = progress.history
    assert record.losses == {"total": 1.5, "similarity": 0.75}
    assert (record.epoch, record.iteration, record.skipped_steps) == (1, 3, 1)
    assert (record.dice_before, record.dice_after, record.folding_percent) == (0.5, 0.75, 1.0)
    assert record.data_wait_fraction == 0.25
    assert (progress.sums, progress.taken, progress.skipped, progress.seconds) == ({}, 0, 0, 0.0)


def test_progress_survives_json_exactly():
    progress = Progress(best=RESULT)
    progress.count(StepOutcome(True, 0.1 + 0.2, 1.0, {"similarity": 1 / 3}))
    progress.close_epoch(1e-4, None)
    progress.count(StepOutcome(True, 1 / 7, 1.0, {"similarity": 1 / 9}))
    assert from_json(Progress, json.loads(json.dumps(to_json(progress)))) == progress


def test_an_epoch_without_any_step_taken_is_still_strict_json():
    progress = Progress()
    progress.count(StepOutcome(False, math.nan, math.nan, {}))
    progress.close_epoch(1e-4, None)
    assert to_json(progress)["history"][0]["losses"] == {}


def scored(score):
    return ValidationResult(1, "both", (PairScore("a", "b", 0.5, score, 0.0, 0.25),))


def test_the_best_epoch_is_that_of_the_best_moving_average():
    progress = Progress()
    assert [progress.close_epoch(1e-4, scored(score)) for score in (0.5, 0.9, 0.5, 0.72, 0.8)] == [
        True,
        True,
        False,
        True,  # the average rises although this epoch is worse than the second: that one was luck
        True,
    ]
    assert progress.best.dice_after == 0.8
    assert progress.smoothed_score == progress.best_score


def test_epochs_without_a_usable_score_are_never_the_best():
    progress = Progress()
    nonsense = ValidationResult(1, "both", (PairScore("a", "b", 0.5, 0.9, 0.0, None),))
    assert not progress.close_epoch(1e-4, None)
    assert not progress.close_epoch(1e-4, nonsense)
    assert (progress.best, progress.smoothed_score) == (None, None)
