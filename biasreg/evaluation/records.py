"""The records of an evaluation: one score per label, pair and method, and their summary over pairs.

None stands for "could not be measured" everywhere, because strict JSON has neither NaN nor infinity.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

SCORES_SCHEMA_VERSION = 3
IDENTITY = "identity"
DEFAULT_METHOD = "biasreg"


@dataclass(frozen=True)
class LabelScore:
    """How well one label of one pair overlaps after warping.

    Attributes:
        value: The label's value in the files.
        name: The label's name; its value as text where the dataset gives none.
        dice: Dice in [0, 1]; None where the label was not evaluated.
        hd95_mm: 95th percentile Hausdorff distance in mm; None where it cannot be measured.
        reason: Why a metric is None; None where both were measured.
    """

    value: int
    name: str
    dice: float | None
    hd95_mm: float | None
    reason: str | None = None


@dataclass(frozen=True)
class LandmarkScore:
    """Target registration error of one pair.

    Attributes:
        mean_mm: Mean over landmarks, mm.
        std_mm: Standard deviation over landmarks, mm.
        max_mm: Largest, mm.
        count: Number of landmarks found in both images.
        unmatched: Names found in one image only; they are not evaluated.
    """

    mean_mm: float
    std_mm: float
    max_mm: float
    count: int
    unmatched: tuple[str, ...] = ()


@dataclass(frozen=True)
class PairScores:
    """All that was measured of one pair under one method.

    Attributes:
        pair: The pair's identifier.
        method: Name of the method; `identity` is no registration at all.
        moving_image: Hash of the moving image's file (first channel), for telling which pairs share an image.
        fixed_image: The same of the fixed image.
        labels: One score per label; empty where the pair has no two label maps.
        dice: Mean Dice over evaluated labels; None where there are none.
        hd95_mm: Mean 95th percentile Hausdorff distance in mm over the labels where it was measured.
        landmarks: Landmark error; None where the pair has no two point sets.
        folding_percent: Share of voxels of the field whose Jacobian determinant is not positive, 0 to 100.
        log_jacobian_std: Standard deviation of log det J where det J > 0.
        learn2reg_log_jacobian_std: The same by Learn2Reg's definition.
        deformation_mm: Mean length in mm of what the field does beyond its best affine fit, over the evaluated fixed
            labels (over the whole grid where no label is evaluated).
        seconds: Time the registration took, from the prediction's own record; None where there is none.
    """

    pair: str
    method: str
    moving_image: str
    fixed_image: str
    labels: tuple[LabelScore, ...]
    dice: float | None
    hd95_mm: float | None
    landmarks: LandmarkScore | None
    folding_percent: float
    log_jacobian_std: float | None
    learn2reg_log_jacobian_std: float | None
    deformation_mm: float
    seconds: float | None = None

    @property
    def tre_mm(self) -> float | None:
        """Mean landmark error in mm; None where the pair has no two point sets."""
        return None if self.landmarks is None else self.landmarks.mean_mm


@dataclass(frozen=True)
class Failure:
    """A pair that could not be evaluated.

    Attributes:
        pair: The pair's identifier.
        method: Name of the method; None where the references themselves cannot be used, for any method.
        reason: What is wrong, where, and what to do.
    """

    pair: str
    method: str | None
    reason: str


@dataclass(frozen=True)
class Statistic:
    """Mean and standard deviation (population, divided by `count`) of a metric over the pairs that have it."""

    mean: float
    std: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Statistic | None":
        """Sum up the values that are not None; None where there are none."""
        known = np.array([value for value in values if value is not None], dtype=np.float64)
        return cls(float(known.mean()), float(known.std()), known.size) if known.size else None


@dataclass(frozen=True)
class LabelSummary:
    """One label over all pairs; a metric is None where no pair has it."""

    value: int
    name: str
    dice: Statistic | None
    hd95_mm: Statistic | None


@dataclass(frozen=True)
class MethodSummary:
    """One method over all its pairs; a metric is None where no pair has it.

    Attributes:
        method: Name of the method.
        num_pairs: Pairs that were evaluated.
        dice: Of the pairs' mean Dice.
        hd95_mm: Of the pairs' mean 95th percentile Hausdorff distances, mm.
        tre_mm: Of the pairs' mean landmark errors, mm.
        folding_percent: Of the pairs' folding, 0 to 100.
        log_jacobian_std: Of the pairs' log-Jacobian spread.
        learn2reg_log_jacobian_std: The same by Learn2Reg's definition.
        seconds: Of the pairs' registration times.
        unmeasured_hd95: Number of evaluated labels, over all pairs, that have a Dice but no Hausdorff distance because
            nothing of the warped label was left: where it is not 0, `hd95_mm` looks better than it is.
        labels: One summary per label.
    """

    method: str
    num_pairs: int
    dice: Statistic | None
    hd95_mm: Statistic | None
    tre_mm: Statistic | None
    folding_percent: Statistic | None
    log_jacobian_std: Statistic | None
    learn2reg_log_jacobian_std: Statistic | None
    seconds: Statistic | None
    unmeasured_hd95: int
    labels: tuple[LabelSummary, ...]


@dataclass(frozen=True)
class Comparison:
    """One metric of one method against that of the reference method, over the pairs where both have it.

    A better pair is one with higher Dice, or with lower HD95, TRE or folding.

    Attributes:
        metric: `dice`, `hd95_mm`, `tre_mm` or `folding_percent`, as in `PairScores`.
        method: Name of the method.
        reference: Name of the method that it is compared with.
        num_pairs: Pairs where both have the metric, at least 1.
        num_images: Different images among these pairs; fewer than `2 * num_pairs` where pairs share images.
        mean_difference: Mean over pairs of method minus reference, in the metric's unit.
        confidence_low: Lower border of its 95 % confidence interval by resampling the images, which allows for pairs
            that share one; None for fewer than 6 pairs, or where all differences are equal.
        confidence_high: Upper border.
        p_value: Of the two-sided Wilcoxon signed-rank test, which takes the pairs as independent; None with a reason.
        p_adjusted: The same by Holm's method over the comparisons of this metric.
        effect_size: Matched-pairs rank-biserial correlation, -1 to 1; positive where `method` is the better one,
            whatever the metric's direction.
        better: Pairs where `method` is better.
        worse: Pairs where it is worse.
        reason: Why there is no p-value; None where there is one.
    """

    metric: str
    method: str
    reference: str
    num_pairs: int
    num_images: int
    mean_difference: float
    confidence_low: float | None
    confidence_high: float | None
    p_value: float | None
    p_adjusted: float | None
    effect_size: float
    better: int
    worse: int
    reason: str | None = None

    @property
    def equal(self) -> int:
        """Pairs where neither is better."""
        return self.num_pairs - self.better - self.worse


@dataclass(frozen=True)
class Stratum:
    """One method over a third of the pairs; the thirds are the same for all methods.

    Attributes:
        by: What the pairs are divided by: `initial_dice` or `initial_tre_mm` (identity's, of the pair), or
            `deformation_mm` (of the reference method's field).
        name: `small`, `medium` or `large` misalignment or deformation.
        lower: Smallest value of `by` among all pairs of the third.
        upper: Largest one.
        method: Name of the method.
        num_pairs: Pairs of the third that this method has.
        dice: Of these pairs' Dice.
        hd95_mm: Of their 95th percentile Hausdorff distances, mm.
        tre_mm: Of their mean landmark errors, mm.
        folding_percent: Of their folding, 0 to 100.
    """

    by: str
    name: str
    lower: float
    upper: float
    method: str
    num_pairs: int
    dice: Statistic | None
    hd95_mm: Statistic | None
    tre_mm: Statistic | None
    folding_percent: Statistic | None


@dataclass(frozen=True)
class WorstCase:
    """A pair that a method registered badly, as its other pairs go.

    Attributes:
        pair: The pair's identifier.
        method: Name of the method.
        metric: What the pair was found by: `dice`, `tre_mm` or `folding_percent`.
        value: The metric's value for this method.
        initial: The same of identity; None for folding.
        best_method: The best of the other methods on this pair, identity left out; None where there is no other.
        best_value: The metric's value for that method.
        reasons: What the scores say about the cause, in words; may be empty.
    """

    pair: str
    method: str
    metric: str
    value: float
    initial: float | None
    best_method: str | None
    best_value: float | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Sources:
    """What was evaluated on what, as absolute paths.

    Attributes:
        references: The reference pairs.
        predictions: Folder of predictions by method name.
    """

    references: str
    predictions: dict[str, str]


@dataclass(frozen=True)
class Evaluation:
    """The whole evaluation, as `summary.json` keeps it.

    Attributes:
        schema_version: Version of this record's layout.
        sources: What was evaluated on what.
        methods: One summary per method, `identity` first.
        pairs: Scores of every pair under every method.
        failures: Pairs that could not be evaluated.
        reference_method: The method that the others are compared with.
        comparisons: Every other method against it, metric by metric.
        strata: Every method over thirds of the pairs; empty for fewer than 6 pairs.
        worst: The worst pairs of the reference method, worst first.
    """

    schema_version: int
    sources: Sources
    methods: tuple[MethodSummary, ...]
    pairs: tuple[PairScores, ...]
    failures: tuple[Failure, ...]
    reference_method: str
    comparisons: tuple[Comparison, ...]
    strata: tuple[Stratum, ...]
    worst: tuple[WorstCase, ...]

    @property
    def is_empty(self) -> bool:
        """Whether no method's field could be measured on any pair; `identity` alone does not count."""
        return all(score.method == IDENTITY for score in self.pairs)
