"""The records of an evaluation: one score per label, pair and method, and their summary over pairs.

None stands for "could not be measured" everywhere, because strict JSON has neither NaN nor infinity.
"""

from dataclasses import dataclass

SCORES_SCHEMA_VERSION = 2
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
        labels: One score per label; empty where the pair has no two label maps.
        dice: Mean Dice over evaluated labels; None where there are none.
        hd95_mm: Mean 95th percentile Hausdorff distance in mm over the labels where it was measured.
        landmarks: Landmark error; None where the pair has no two point sets.
        folding_percent: Share of voxels of the field whose Jacobian determinant is not positive, 0 to 100.
        log_jacobian_std: Standard deviation of log det J where det J > 0.
        learn2reg_log_jacobian_std: The same by Learn2Reg's definition.
        seconds: Time the registration took, from the prediction's own record; None where there is none.
    """

    pair: str
    method: str
    labels: tuple[LabelScore, ...]
    dice: float | None
    hd95_mm: float | None
    landmarks: LandmarkScore | None
    folding_percent: float
    log_jacobian_std: float | None
    learn2reg_log_jacobian_std: float | None
    seconds: float | None = None


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
    """

    schema_version: int
    sources: Sources
    methods: tuple[MethodSummary, ...]
    pairs: tuple[PairScores, ...]
    failures: tuple[Failure, ...]

    @property
    def is_empty(self) -> bool:
        """Whether no method's field could be measured on any pair; `identity` alone does not count."""
        return all(score.method == IDENTITY for score in self.pairs)
