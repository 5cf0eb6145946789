"""Scores of held-out pairs on the canonical grid, measured after each epoch."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from biasreg.losses.objective import ObjectiveSettings, PairBatch, RegistrationOutput, similarity_term
from biasreg.network.device import autocast
from biasreg.planning.pairing import Pair
from biasreg.spatial.jacobian import folding_fraction, jacobian_determinant
from biasreg.spatial.warp import warp_labels
from biasreg.training.data import CaseSource, to_device

HeldOut = Literal["both", "fixed only", "none"]
FOLDING_PENALTY = 10.0  # a thousandth of the voxels folding costs as much as 0.01 Dice, more than it can gain


@dataclass(frozen=True)
class PairScore:
    """How well one pair was registered, on the canonical grid.

    Attributes:
        moving: Moving case.
        fixed: Fixed case.
        dice_before: Mean Dice of the unregistered pair over the labels present in both cases; None without such labels.
        dice_after: The same after registration.
        folding_fraction: Share of voxels at which the transform folds, 0 to 1.
        similarity_loss: Similarity term of the loss after registration, lower is better; None if it is not finite.
    """

    moving: str
    fixed: str
    dice_before: float | None
    dice_after: float | None
    folding_fraction: float
    similarity_loss: float | None


@dataclass(frozen=True)
class ValidationResult:
    """Scores of all validation pairs at one moment.

    Attributes:
        epoch: Number of finished epochs.
        held_out: Which cases of the pairs training has never seen: `both`, the `fixed only`, or `none`.
        pairs: Score of each pair.
    """

    epoch: int
    held_out: HeldOut
    pairs: tuple[PairScore, ...]

    @property
    def dice_before(self) -> float | None:
        """Mean Dice before registration over the pairs that have labels, or None."""
        return _mean([pair.dice_before for pair in self.pairs])

    @property
    def dice_after(self) -> float | None:
        """Mean Dice after registration over the pairs that have labels, or None."""
        return _mean([pair.dice_after for pair in self.pairs])

    @property
    def folding_fraction(self) -> float | None:
        """Mean share of folding voxels, 0 to 1."""
        return _mean([pair.folding_fraction for pair in self.pairs])

    @property
    def similarity_loss(self) -> float | None:
        """Mean similarity term of the loss."""
        return _mean([pair.similarity_loss for pair in self.pairs])

    @property
    def score(self) -> float:
        """How good a network is: Dice − 10 · folding fraction, or −similarity loss without any labels.

        A network whose output is not finite scores −∞.
        """
        if any(pair.similarity_loss is None for pair in self.pairs):
            return -math.inf
        if self.dice_after is not None and self.folding_fraction is not None:
            return self.dice_after - FOLDING_PENALTY * self.folding_fraction
        return -self.similarity_loss if self.similarity_loss is not None else -math.inf


@dataclass(frozen=True)
class Validation:
    """Scores a network on a fixed list of pairs.

    Attributes:
        source: Where cases are read from.
        pairs: (moving, fixed) case identifiers.
        held_out: What training has not seen of them.
        settings: Similarity and number of labels.
    """

    source: CaseSource
    pairs: tuple[Pair, ...]
    held_out: HeldOut
    settings: ObjectiveSettings

    def scores(self, network: nn.Module, pairs: Sequence[Pair] | None = None) -> Iterator[PairScore]:
        """Score one pair after the other; the network is put into evaluation mode and back into training mode.

        Args:
            network: The network.
            pairs: Those of `pairs` to score; None for all.

        Yields:
            The scores, in the order of the pairs.
        """
        device = next(network.parameters()).device
        for pair in self.pairs if pairs is None else pairs:
            batch = to_device(self.source.batch((pair,)), device)
            network.eval()
            try:
                yield score_pair(network, batch, pair, self.settings)
            finally:
                network.train()


@torch.inference_mode()
def score_pair(
    network: Callable[[Tensor, Tensor], RegistrationOutput], batch: PairBatch, pair: Pair, settings: ObjectiveSettings
) -> PairScore:
    """Register one pair and score it.

    Args:
        network: Returns an output with a `displacement` (1, 3, X, Y, Z) in voxels.
        batch: One pair, on the network's device.
        pair: Its identifiers.
        settings: Similarity and number of labels.
    """
    with autocast(batch.moving.device):
        displacement = network(batch.moving, batch.fixed).displacement
    displacement = displacement.float()
    loss = float(similarity_term(batch, displacement, settings))
    before = after = None
    if settings.num_labels > 1 and bool(batch.moving_annotated.all() & batch.fixed_annotated.all()):
        warped_labels = warp_labels(batch.moving_labels, displacement, range(1, settings.num_labels))
        present = labels_present(batch.moving_labels, settings.num_labels)
        before = mean_dice(batch.moving_labels, batch.fixed_labels, present)
        after = mean_dice(warped_labels, batch.fixed_labels, present)
    return PairScore(
        *pair,
        dice_before=before,
        dice_after=after,
        folding_fraction=float(folding_fraction(jacobian_determinant(displacement))),
        similarity_loss=loss if math.isfinite(loss) and bool(displacement.isfinite().all()) else None,
    )


def labels_present(labels: Tensor, num_labels: int) -> Tensor:
    """Tell which classes occur in a label map.

    Args:
        labels: Classes, any shape, integer in [0, num_labels).
        num_labels: Number of classes with the background.

    Returns:
        (num_labels,) bool.
    """
    return torch.bincount(labels.flatten(), minlength=num_labels) > 0


def mean_dice(labels: Tensor, reference: Tensor, present: Tensor) -> float | None:
    """Mean Dice 2|A ∩ B| / (|A| + |B|) over the foreground labels that are in `present` and in the reference.

    A label that the warp lost counts as 0, so `present` tells what the moving image held *before* it was warped.

    Args:
        labels: Warped or moving classes, any shape, integer.
        reference: Fixed classes, same shape.
        present: (num_labels,) bool, the classes of the moving case.

    Returns:
        Mean in [0, 1], or None when there is no common foreground label.
    """
    classes = len(present)
    ours, theirs = labels.flatten(), reference.flatten()
    sizes = torch.bincount(ours, minlength=classes), torch.bincount(theirs, minlength=classes)
    common = torch.bincount(ours[ours == theirs], minlength=classes)
    counted = present & (sizes[1] > 0)
    counted[0] = False
    if not counted.any():
        return None
    return float((2 * common[counted] / (sizes[0] + sizes[1])[counted]).mean())


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
