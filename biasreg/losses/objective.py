"""The training objective: which terms there are, and what each of them sees."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from biasreg.losses.ardc import consistency_loss, label_mask, sample_label_subset
from biasreg.losses.overlap import labels_in_both, one_hot, segmentation_loss, soft_dice_loss
from biasreg.losses.similarity import dissimilarity
from biasreg.losses.smoothness import diffusion_loss
from biasreg.planning.plans import LossWeights, Similarity
from biasreg.spatial.guards import at_least_float32, require_same_grid, require_same_shape
from biasreg.spatial.warp import positions, sample_visible, warp


class RegistrationOutput(Protocol):
    """What the objective needs of a network's output."""

    @property
    def displacement(self) -> Tensor:
        """Φ, (B, 3, X, Y, Z) in voxels."""

    @property
    def moving_logits(self) -> Tensor | None:
        """Segmentation of the moving image, (B, K, X', Y', Z'), or None without a segmentation head."""

    @property
    def fixed_logits(self) -> Tensor | None:
        """Segmentation of the fixed image, the same."""


class PairBatch(NamedTuple):
    """Pairs of images with their labels; each entry has the pairs along its first axis.

    Attributes:
        moving: (B, C, X, Y, Z) float, intensities in [0, 1].
        fixed: The same.
        moving_labels: (B, 1, X, Y, Z) integer in 0 .. num_labels - 1; zeros for a case without labels.
        fixed_labels: The same.
        moving_annotated: (B,) bool: whether the case has labels.
        fixed_annotated: The same.
        moving_visible: (B, 1, X, Y, Z) float, 1 where the image has values, 0 beyond its field of view.
        fixed_visible: The same.
        moving_mask: (B, 1, X, Y, Z) float in [0, 1]: where the similarity counts, as the user's mask says.
        fixed_mask: The same.
    """

    moving: Tensor
    fixed: Tensor
    moving_labels: Tensor
    fixed_labels: Tensor
    moving_annotated: Tensor
    fixed_annotated: Tensor
    moving_visible: Tensor
    fixed_visible: Tensor
    moving_mask: Tensor
    fixed_mask: Tensor


@dataclass(frozen=True)
class ObjectiveSettings:
    """What the objective is made of.

    Attributes:
        similarity: `lncc` within a modality, `mind` across modalities.
        window: Side of the local NCC window in voxels, odd.
        weights: Weight of each term.
        spacing: Voxel size in mm along each array axis.
        num_labels: Foreground labels plus background.
        labels_per_step: At most this many labels enter the overlap term in one step.

    Raises:
        ValueError: On an unknown similarity, or numbers of labels below 1.
    """

    similarity: Similarity
    window: int
    weights: LossWeights
    spacing: tuple[float, float, float]
    num_labels: int
    labels_per_step: int

    def __post_init__(self) -> None:
        if self.similarity not in get_args(Similarity):
            raise ValueError(f"unknown similarity {self.similarity!r}; use one of {get_args(Similarity)}")
        if self.num_labels < 1 or self.labels_per_step < 1:
            raise ValueError(
                f"num_labels is {self.num_labels} and labels_per_step is {self.labels_per_step}; "
                "both must be at least 1"
            )


class Terms(NamedTuple):
    """The objective and its parts.

    Attributes:
        total: The weighted sum, a scalar to differentiate.
        terms: Each term before weighting, detached scalars: similarity, smoothness, overlap, segmentation, consistency.
        displacement: Φ of the pair, (B, 3, X, Y, Z) in voxels.
        pairs: All terms but the consistency, of each pair.
    """

    total: Tensor
    terms: dict[str, Tensor]
    displacement: Tensor
    pairs: tuple[dict[str, Tensor], ...] = ()


def objective(
    network: Callable[[Tensor, Tensor], RegistrationOutput],
    batch: PairBatch,
    settings: ObjectiveSettings,
    *,
    consistency_scale: float,
    generators: Sequence[torch.Generator],
) -> Terms:
    """Run the network on a batch of pairs and return the training objective, the mean over the pairs.

    total = w_sim · similarity + w_smooth · diffusion + w_overlap · Dice + w_seg · segmentation
    + w_con · scale · consistency.

    The network is called once, and a second time on the masked pairs when consistency counts and a pair shares labels.
    It runs under the caller's autocast; fields and losses are float32. What a pair adds depends on that pair and its
    generator alone, so that several processes with a share of the batch each have the same mean.

    Args:
        network: Takes (moving, fixed), gives the output.
        batch: The pairs.
        settings: The terms and their weights.
        consistency_scale: Factor of the consistency weight, at least 0: it rises at the start of training.
        generators: One per pair; draws the labels of its overlap and of its consistency term; on the CPU.

    Returns:
        The terms. A term that has nothing to look at, or was skipped, is 0.

    Raises:
        ValueError: On shapes that do not fit each other.
    """
    require_same_shape(batch.moving, batch.fixed, ("moving", "fixed"))
    if len(generators) != len(batch.moving):
        raise ValueError(f"there are {len(generators)} generators for {len(batch.moving)} pairs; give one for each")
    output = network(batch.moving, batch.fixed)
    displacement = at_least_float32(output.displacement)
    require_same_grid(batch.fixed, displacement, ("fixed", "displacement"))
    weights = settings.weights
    consistency_weight = weights.consistency * consistency_scale
    with torch.autocast(batch.fixed.device.type, enabled=False):
        per_pair = [
            _pair_terms(_pair(batch, index), _pair_output(output, index), settings, generator)
            for index, generator in enumerate(generators)
        ]
    terms = {name: torch.stack([each[name] for each in per_pair]).mean() for name in per_pair[0]}
    terms["consistency"] = displacement.new_zeros(())
    if consistency_weight > 0 and settings.num_labels > 1:
        terms["consistency"] = _consistency(network, batch, displacement, settings, generators)
    total = (
        weights.similarity * terms["similarity"]
        + weights.smoothness * terms["smoothness"]
        + weights.overlap * terms["overlap"]
        + weights.segmentation * terms["segmentation"]
        + consistency_weight * terms["consistency"]
    )
    pairs = tuple(_detached(each) for each in per_pair)
    return Terms(total, _detached(terms), displacement, pairs)


def _detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: term.detach() for name, term in terms.items()}


class _PairOutput(NamedTuple):
    """A `RegistrationOutput` of one pair."""

    displacement: Tensor
    moving_logits: Tensor | None
    fixed_logits: Tensor | None


def _pair(batch: PairBatch, index: int) -> PairBatch:
    return PairBatch(*(entry[index : index + 1] for entry in batch))


def _pair_output(output: RegistrationOutput, index: int) -> _PairOutput:
    every = (output.displacement, output.moving_logits, output.fixed_logits)
    return _PairOutput(*(None if entry is None else entry[index : index + 1] for entry in every))  # type: ignore[arg-type]


def _pair_terms(
    pair: PairBatch, output: RegistrationOutput, settings: ObjectiveSettings, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return all terms but consistency, of one pair."""
    displacement = at_least_float32(output.displacement)
    return {
        "similarity": similarity_term(pair, displacement, settings),
        "smoothness": diffusion_loss(displacement, settings.spacing),
        "overlap": _overlap(pair, displacement, settings, generator),
        "segmentation": _segmentation(pair, output),
    }


def similarity_term(batch: PairBatch, displacement: Tensor, settings: ObjectiveSettings) -> Tensor:
    """Return the image term where both images have values and their masks let it count.

    Where that is takes no gradient: the term must not fall by moving anatomy out of the image.

    Args:
        batch: The pairs.
        displacement: (B, 3, X, Y, Z) in voxels, float32.
        settings: Which similarity, and its window.

    Returns:
        A scalar; lower is better.
    """
    warped, share = sample_visible(at_least_float32(batch.moving), batch.moving_visible, positions(displacement))
    visible = batch.fixed_visible * share.detach()
    counts, _ = sample_visible(batch.moving_mask, batch.moving_visible, positions(displacement.detach()))
    weight = visible * batch.fixed_mask * counts
    kind, window = settings.similarity, settings.window
    return dissimilarity(kind, warped, batch.fixed, window=window, mask=visible, weight=weight)


def _overlap(batch: PairBatch, displacement: Tensor, settings: ObjectiveSettings, generator: torch.Generator) -> Tensor:
    """Return soft Dice of the warped labels within both fields of view, at most `labels_per_step` of them.

    Beyond a field of view a label is unknown, not absent: an organ must not be pressed into what is seen of it.
    """
    if settings.num_labels < 2:  # a model without labels, whatever its cases show
        return displacement.sum() * 0.0
    visible = batch.fixed_visible * warp(batch.moving_visible, displacement.detach(), padding="zeros") > 0.5
    valid = labels_in_both(batch.moving_labels, batch.fixed_labels * visible, settings.num_labels)
    valid &= (batch.moving_annotated & batch.fixed_annotated)[:, None]
    classes = valid.any(dim=0).nonzero().flatten().tolist()
    if not classes:
        return displacement.sum() * 0.0
    if len(classes) > settings.labels_per_step:
        drawn = torch.randperm(len(classes), generator=generator)[: settings.labels_per_step]
        classes = [classes[index] for index in drawn.tolist()]
    warped, _ = sample_visible(one_hot(batch.moving_labels, classes), batch.moving_visible, positions(displacement))
    return soft_dice_loss(warped * visible, one_hot(batch.fixed_labels, classes) * visible, valid[:, classes])


def _segmentation(batch: PairBatch, output: RegistrationOutput) -> Tensor:
    """Return the segmentation loss, mean of moving and fixed; 0 without a segmentation head."""
    if output.moving_logits is None or output.fixed_logits is None:
        return output.displacement.new_zeros((), dtype=torch.float32)
    moving = segmentation_loss(output.moving_logits, batch.moving_labels, batch.moving_annotated)
    fixed = segmentation_loss(output.fixed_logits, batch.fixed_labels, batch.fixed_annotated)
    return 0.5 * (moving + fixed)


def _consistency(
    network: Callable[[Tensor, Tensor], RegistrationOutput],
    batch: PairBatch,
    displacement: Tensor,
    settings: ObjectiveSettings,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Register each pair masked to a subset of its labels, and compare the two fields (ARDC); 0 without such labels."""
    subset = torch.cat([_consistency_labels(_pair(batch, i), settings, each) for i, each in enumerate(generators)])
    if not bool(subset.any()):
        return displacement.new_zeros(())
    mask_moving, mask_fixed = label_mask(batch.moving_labels, subset), label_mask(batch.fixed_labels, subset)
    masked_moving = batch.moving * mask_moving.to(batch.moving.dtype)
    masked_fixed = batch.fixed * mask_fixed.to(batch.fixed.dtype)
    masked_displacement = at_least_float32(network(masked_moving, masked_fixed).displacement)
    entries = (masked_moving, displacement, masked_displacement, mask_moving, mask_fixed)
    with torch.autocast(batch.fixed.device.type, enabled=False):
        pairs = zip(*(entry.split(1) for entry in entries), strict=True)
        return torch.stack([consistency_loss(*pair) for pair in pairs]).mean()


def _consistency_labels(pair: PairBatch, settings: ObjectiveSettings, generator: torch.Generator) -> Tensor:
    """Return the labels that a pair is masked to, (1, K) bool; none where a case is not annotated."""
    subset = sample_label_subset(pair.moving_labels, pair.fixed_labels, settings.num_labels, generator)
    return subset & (pair.moving_annotated & pair.fixed_annotated)[:, None]
