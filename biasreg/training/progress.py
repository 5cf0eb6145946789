"""How far a run has come."""

import math
from dataclasses import dataclass, field
from statistics import median

from biasreg.training.observers import EpochRecord
from biasreg.training.optimization import StepOutcome
from biasreg.training.validation import ValidationResult

SCORE_SMOOTHING = 0.7  # share of the former average in the new one; nnU-Net takes 0.9 over ten times as many epochs


@dataclass
class Progress:
    """How far a run has come: plain data, saved in every checkpoint.

    Attributes:
        iteration: Steps done.
        history: Finished epochs.
        best: Validation of the best epoch so far.
        smoothed_score: Moving average of the validation scores, what the best epoch is chosen by; None before any.
        best_score: The largest of these averages so far.
        sums: Sum of each loss term over the taken steps of the running epoch.
        counts: In how many of these steps each term had something to look at, that is, was not 0.
        taken: Steps of the running epoch that changed the weights.
        skipped: Its steps that were skipped because loss or gradient was not finite.
        skipped_in_a_row: Steps skipped since the last one that was taken.
        seconds: Time spent on the running epoch.
        waiting: Part of it spent waiting for batches.
        durations: Duration of each of its steps.
    """

    iteration: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    best: ValidationResult | None = None
    smoothed_score: float | None = None
    best_score: float | None = None
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    taken: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    durations: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.sums and not self.counts:  # of a checkpoint that did not know them yet
            self.counts = dict.fromkeys(self.sums, self.taken)

    def count(self, outcome: StepOutcome, seconds: float = 0.0) -> None:
        """Add a step, and how long it took with its batch, to the running epoch."""
        self.iteration += 1
        self.seconds += seconds
        self.durations.append(seconds)
        if not outcome.taken:
            self.skipped += 1
            self.skipped_in_a_row += 1
            return
        self.taken += 1
        self.skipped_in_a_row = 0
        for name, value in {"total": outcome.loss, **outcome.terms}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + (value != 0)

    def close_epoch(self, learning_rate: float, validation: ValidationResult | None) -> bool:
        """Turn the running epoch into a record and begin the next.

        Args:
            learning_rate: That of its last step.
            validation: Its validation, if it had one.

        Returns:
            Whether the epoch is the best so far.
        """
        is_best = validation is not None and self._is_best(validation)
        folding = validation.folding_fraction if validation else None
        record = EpochRecord(
            epoch=len(self.history) + 1,
            iteration=self.iteration,
            learning_rate=learning_rate,
            losses={name: total / max(1, self.counts.get(name, 0)) for name, total in self.sums.items()},
            skipped_steps=self.skipped,
            dice_before=validation.dice_before if validation else None,
            dice_after=validation.dice_after if validation else None,
            folding_percent=None if folding is None else 100 * folding,
            similarity_loss=validation.similarity_loss if validation else None,
            seconds=self.seconds,
            data_wait_fraction=self.waiting / self.seconds if self.seconds > 0 else 0.0,
            step_seconds=median(self.durations) if self.durations else None,
            score=score if validation and math.isfinite(score := validation.score) else None,
            smoothed_score=self.smoothed_score if validation else None,
            is_best=is_best,
        )
        self.history.append(record)
        self.sums, self.counts, self.durations = {}, {}, []
        self.taken, self.skipped, self.seconds, self.waiting = 0, 0, 0.0, 0.0
        return is_best

    def _is_best(self, validation: ValidationResult) -> bool:
        """Take a validation into the average; one that is not finite is no score, and leaves the average alone."""
        score = validation.score
        if not math.isfinite(score):
            return False
        known = score if self.smoothed_score is None else self.smoothed_score
        self.smoothed_score = SCORE_SMOOTHING * known + (1 - SCORE_SMOOTHING) * score
        if self.best_score is not None and self.smoothed_score <= self.best_score:
            return False
        if score < self.smoothed_score:  # the average still rises, but this epoch fell behind it
            return False
        self.best, self.best_score = validation, self.smoothed_score
        return True
