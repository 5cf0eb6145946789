"""Overlap of label maps: what weak supervision and the segmentation head learn from.

A case need not show every label, and need not be annotated at all: what is missing is left out, never counted as an
error.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from biasreg.spatial.guards import at_least_float32, require_same_shape, require_volume


def one_hot(labels: Tensor, classes: Sequence[int] | int) -> Tensor:
    """Return one map per class.

    Args:
        labels: (B, 1, X, Y, Z) integer.
        classes: The values to make maps of, or a number K for 0 .. K-1.

    Returns:
        (B, K, X, Y, Z) float32: 1 where the label has the class's value, else 0.

    Raises:
        ValueError: On a wrong shape.
    """
    _require_labels(labels, "labels")
    values = range(classes) if isinstance(classes, int) else classes
    return (labels == labels.new_tensor(list(values)).view(1, -1, 1, 1, 1)).float()


def label_fractions(labels: Tensor, num_labels: int, shape: Sequence[int]) -> Tensor:
    """Return the share of each class in each voxel of a coarser grid over the same field of view.

    Unlike nearest-neighbour reduction this does not shift the labels by half a voxel. On the labels' own grid it is
    `one_hot`.

    Args:
        labels: (B, 1, X, Y, Z) integer in 0 .. num_labels - 1.
        num_labels: K, with background.
        shape: The coarser grid (X', Y', Z'), each size a divisor of the labels' size.

    Returns:
        (B, K, X', Y', Z') float32 in [0, 1].

    Raises:
        ValueError: On a wrong shape or a grid that does not divide the labels' grid.
    """
    _require_labels(labels, "labels")
    if any(size < 1 or full % size for full, size in zip(labels.shape[2:], shape, strict=True)):
        raise ValueError(f"labels have shape {tuple(labels.shape)}, which the grid {tuple(shape)} does not divide")
    factor = [full // size for full, size in zip(labels.shape[2:], shape, strict=True)]
    if max(factor) == 1:
        return one_hot(labels, num_labels)
    # Class by class: the fine one-hot volume of many labels would not fit into memory.
    pooled = [F.avg_pool3d((labels == value).float(), factor) for value in range(num_labels)]
    return torch.cat(pooled, dim=1)


def labels_in_both(moving_labels: Tensor, fixed_labels: Tensor, num_labels: int) -> Tensor:
    """Tell which foreground labels occur in both label maps of each pair.

    Args:
        moving_labels: (B, 1, X, Y, Z) integer in 0 .. num_labels - 1.
        fixed_labels: (B, 1, X, Y, Z), the same.
        num_labels: K, with background.

    Returns:
        (B, K) bool; column k is label k, column 0 (background) is False.

    Raises:
        ValueError: On a wrong shape or unequal batches.
    """
    _require_labels(moving_labels, "moving_labels")
    _require_labels(fixed_labels, "fixed_labels")
    if moving_labels.shape[0] != fixed_labels.shape[0]:
        raise ValueError(
            f"moving_labels has shape {tuple(moving_labels.shape)} but fixed_labels has shape "
            f"{tuple(fixed_labels.shape)}; the batch sizes must be the same"
        )
    both = _labels_present(moving_labels, num_labels) & _labels_present(fixed_labels, num_labels)
    both[:, 0] = False
    return both


def soft_dice_loss(warped_one_hot: Tensor, fixed_one_hot: Tensor, valid: Tensor) -> Tensor:
    """Return 1 − the mean soft Dice over the valid labels.

    Dice = 2 Σ w f / (Σ w + Σ f), per case and label.

    Args:
        warped_one_hot: w, (B, K, X, Y, Z) in [0, 1].
        fixed_one_hot: f, of the same shape, in [0, 1].
        valid: (B, K) bool, the labels that count for each case.

    Returns:
        Scalar in [0, 1], float32 or more; 0, with a zero gradient, when nothing is valid.

    Raises:
        ValueError: On unequal shapes.

    Source:
        Milletari, Navab, Ahmadi: V-Net, 3DV 2016, arXiv:1606.04797, with plain instead of squared sums below.
    """
    require_same_shape(warped_one_hot, fixed_one_hot, ("warped_one_hot", "fixed_one_hot"))
    if valid.shape != warped_one_hot.shape[:2]:
        raise ValueError(
            f"valid has shape {tuple(valid.shape)} but the maps have shape {tuple(warped_one_hot.shape)}; "
            "valid must be (B, K)"
        )
    warped, fixed = at_least_float32(warped_one_hot).flatten(2), at_least_float32(fixed_one_hot).flatten(2)
    overlap = (warped * fixed).sum(dim=2)  # (B, K)
    volumes = warped.sum(dim=2) + fixed.sum(dim=2)
    dice = 2 * overlap / volumes.clamp(min=torch.finfo(volumes.dtype).eps)
    counts = valid.to(dice.dtype)
    return ((1 - dice) * counts).sum() / counts.sum().clamp(min=1)


def segmentation_loss(logits: Tensor, labels: Tensor, annotated: Tensor) -> Tensor:
    """Return cross-entropy plus soft Dice of a segmentation, over the annotated cases.

    Where the logits' grid is coarser than the labels', the target is the share of each class in each coarse voxel. Dice
    is the mean over the foreground labels that a case shows. A label that a case does not show may be absent, or never
    have been drawn: as background counts, for cross-entropy, the sum of the probabilities of background and of those
    labels.

    Args:
        logits: (B, K, X', Y', Z').
        labels: (B, 1, X, Y, Z) integer in 0 .. K-1; each size a multiple of the logits'.
        annotated: (B,) bool; the labels of other cases are not looked at.

    Returns:
        Scalar, at least 0, float32 or more; 0, with a zero gradient, when no case is annotated.

    Raises:
        ValueError: On shapes that do not fit each other.

    Source:
        The marginal cross-entropy of partly labelled data: Shi et al., Medical Image Analysis 2021, arXiv:2007.03868.
    """
    require_volume(logits, "logits")
    _require_labels(labels, "labels")
    if not logits.shape[0] == labels.shape[0] == annotated.shape[0]:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, labels {tuple(labels.shape)} and annotated "
            f"{tuple(annotated.shape)}; the batch sizes must be the same"
        )
    logits = at_least_float32(logits)
    cases = annotated.nonzero().squeeze(1)
    if cases.numel() == 0:
        return logits.sum() * 0.0
    target = label_fractions(labels[cases], logits.shape[1], logits.shape[2:])
    log_probability = logits[cases].log_softmax(dim=1)
    shown = target.flatten(2).any(dim=2)[:, 1:]  # (B', K-1)
    background = _log_background(log_probability, shown)
    cross_entropy = -(target[:, :1] * background + (target * log_probability)[:, 1:].sum(dim=1, keepdim=True)).mean()
    return cross_entropy + soft_dice_loss(log_probability[:, 1:].exp(), target[:, 1:], shown)


def _log_background(log_probability: Tensor, shown: Tensor) -> Tensor:
    """Return log of the probability of background or of a label that the case does not show, (B, 1, X, Y, Z)."""
    others = F.pad(shown, (1, 0))[:, :, None, None, None]  # (B, K, 1, 1, 1), false for background
    return log_probability.masked_fill(others, -torch.inf).logsumexp(dim=1, keepdim=True)


def _labels_present(labels: Tensor, num_labels: int) -> Tensor:
    """Return (B, K) bool: which values occur in each label map."""
    present = torch.zeros(labels.shape[0], num_labels, dtype=torch.bool, device=labels.device)
    return present.scatter_(1, labels.flatten(1).long(), True)


def _require_labels(labels: Tensor, name: str) -> None:
    """Refuse what is no label map (B, 1, X, Y, Z) of integers."""
    require_volume(labels, name)
    if labels.shape[1] != 1 or labels.is_floating_point():
        raise ValueError(f"{name} are {labels.dtype} of shape {tuple(labels.shape)}, expected integers (B, 1, X, Y, Z)")
