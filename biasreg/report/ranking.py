"""What is known of each pair in one row, and which pairs went worst."""

from collections.abc import Sequence
from dataclasses import dataclass

from biasreg.evaluation.records import IDENTITY, PairScores
from biasreg.evaluation.summary import mean_of_known
from biasreg.report.material import Material
from biasreg.report.predictions import PredictedPair

LOST_DICE = 0.0  # an evaluated pair without any Dice is not known to be bad; one with a Dice of 0 is


@dataclass(frozen=True)
class PairRow:
    """One pair in numbers; None is what is not known.

    Attributes:
        pair: The pair.
        dice_before: Mean Dice in the world of the headers, 0 to 1.
        dice: The same after registration.
        hd95_mm: Mean 95th percentile Hausdorff distance, mm.
        tre_mm: Mean landmark error, mm.
        folding_percent: Share of folding voxels, 0 to 100.
        log_jacobian_std: Spread of log det J.
        seconds: Duration of the registration.
    """

    pair: PredictedPair
    dice_before: float | None
    dice: float | None
    hd95_mm: float | None
    tre_mm: float | None
    folding_percent: float | None
    log_jacobian_std: float | None
    seconds: float | None

    @property
    def name(self) -> str:
        """Identifier of the pair."""
        return self.pair.name

    @property
    def status(self) -> str | None:
        """`PASS`, `WARN` or `FAIL`; None where the record does not say."""
        record = self.pair.record
        return None if record is None or record.trust is None else record.trust.status

    @property
    def refined(self) -> str:
        """Voxel size of the finest grid that the field was refined on, such as `1×1×1.2`; empty if it was not."""
        size = None if self.pair.record is None else self.pair.record.refined_mm
        return "×".join(f"{side:.3g}" for side in size or ())

    @property
    def notices(self) -> tuple[str, ...]:
        """What the record tells a user to know."""
        return () if self.pair.record is None else self.pair.record.notices

    @property
    def is_worse(self) -> bool:
        """Whether the labels overlap less than without registration."""
        return self.dice is not None and self.dice_before is not None and self.dice < self.dice_before

    @property
    def badness(self) -> float:
        """How bad the pair is: by overlap, else by landmarks, else by folding; larger is worse."""
        for value in (None if self.dice is None else -self.dice, self.tre_mm, self.folding_percent):
            if value is not None:
                return value
        return 0.0


def rank_pairs(material: Material) -> tuple[PairRow, ...]:
    """Describe all pairs, worst first.

    Args:
        material: What is known.

    Returns:
        One row per pair, by Dice, or by landmark error where no pair has a Dice, or by folding.
    """
    scores, before = material.scores(material.method), material.scores(IDENTITY)
    rows = [_row(pair, scores.get(pair.name), before.get(pair.name)) for pair in material.pairs]
    if any(row.dice is not None for row in rows):
        return tuple(sorted(rows, key=lambda row: (row.dice is None, row.dice or LOST_DICE, row.name)))
    return tuple(sorted(rows, key=lambda row: (-row.badness, row.name)))


def choose_pairs(rows: Sequence[PairRow], count: int) -> tuple[PairRow, ...]:
    """Choose pairs to look at: worst, median and best, then further ones from the worst on.

    Args:
        rows: Pairs, worst first.
        count: At most so many.
    """
    if not rows or count < 1:
        return ()
    ranked = len(_measured(rows))
    order = [0, ranked // 2, ranked - 1, *range(len(rows))]
    return tuple(rows[index] for index in list(dict.fromkeys(order))[:count])


def is_ranked(rows: Sequence[PairRow]) -> bool:
    """Whether anything tells better pairs from worse ones."""
    return len({row.badness for row in rows}) > 1


def rank_word(row: PairRow, rows: Sequence[PairRow]) -> str:
    """Say where a pair stands: `worst`, `median`, `best`, or its rank from the worst.

    Nothing where all are alike, and of a pair without labels among pairs with labels.
    """
    ranked = _measured(rows)
    if not is_ranked(rows) or row not in ranked:
        return ""
    index = ranked.index(row)
    for word, place in (("worst", 0), ("best", len(ranked) - 1), ("median", len(ranked) // 2)):
        if index == place:
            return word
    return f"{index + 1} of {len(ranked)} from the worst"


def _measured(rows: Sequence[PairRow]) -> list[PairRow]:
    """Leave out the pairs without labels, which come last, if there are others."""
    return [row for row in rows if row.dice is not None] or list(rows)


def _row(pair: PredictedPair, score: PairScores | None, before: PairScores | None) -> PairRow:
    record, accuracy = pair.record, pair.record.accuracy if pair.record else None
    quality = record.quality if record else None
    landmarks = score.landmarks if score else None
    return PairRow(
        pair=pair,
        dice_before=_first(
            before.dice if before else None, mean_of_known(accuracy.dice_before.values()) if accuracy else None
        ),
        dice=_first(score.dice if score else None, mean_of_known(accuracy.dice_after.values()) if accuracy else None),
        hd95_mm=score.hd95_mm if score else None,
        tre_mm=landmarks.mean_mm if landmarks else None,
        folding_percent=_first(score.folding_percent if score else None, quality.folding_percent if quality else None),
        log_jacobian_std=_first(
            score.log_jacobian_std if score else None, quality.log_jacobian_std if quality else None
        ),
        seconds=_first(score.seconds if score else None, record.seconds.get("total") if record else None),
    )


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)
