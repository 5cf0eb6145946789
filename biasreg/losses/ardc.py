"""Anatomical-region deformation consistency (ARDC): the field must not depend on what surrounds the organs.

The pair, masked to some of its labels, goes through the same network; the two fields must warp the masked moving image
alike. Masking to *all* labels would change little where labels cover the whole body part, so the labels are a random
subset, drawn anew in each step.
"""

import torch
from torch import Tensor

from biasreg.losses.overlap import labels_in_both
from biasreg.spatial.guards import at_least_float32, require_same_grid, require_same_shape
from biasreg.spatial.warp import warp


def sample_label_subset(
    moving_labels: Tensor, fixed_labels: Tensor, num_labels: int, generator: torch.Generator
) -> Tensor:
    """Draw a random non-empty subset of the labels present in both images of each pair.

    Every non-empty subset is equally likely.

    Args:
        moving_labels: (B, 1, X, Y, Z) integer in 0 .. num_labels - 1.
        fixed_labels: (B, 1, X, Y, Z), the same.
        num_labels: K, with background.
        generator: Source of randomness, on the CPU.

    Returns:
        (B, K) bool on the labels' device; False throughout for a pair that shares no label.

    Raises:
        ValueError: On a wrong shape.
    """
    present = labels_in_both(moving_labels, fixed_labels, num_labels)
    subset = torch.zeros(present.shape, dtype=torch.bool)
    for case, row in enumerate(present.cpu()):
        while row.any() and not subset[case].any():
            subset[case] = row & (torch.rand(num_labels, generator=generator) < 0.5)
    return subset.to(present.device)


def label_mask(labels: Tensor, subset: Tensor) -> Tensor:
    """Return 1 where the label belongs to the subset, else 0.

    Args:
        labels: (B, 1, X, Y, Z) integer in 0 .. K-1.
        subset: (B, K) bool.

    Returns:
        (B, 1, X, Y, Z) float32.

    Raises:
        ValueError: When the batch sizes differ.
    """
    if labels.shape[0] != subset.shape[0]:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} but subset has shape {tuple(subset.shape)}; "
            "the batch sizes must be the same"
        )
    return subset.float().gather(1, labels.flatten(1).long()).view(labels.shape)


def consistency_loss(
    masked_moving: Tensor, field: Tensor, masked_field: Tensor, mask_moving: Tensor, mask_fixed: Tensor
) -> Tensor:
    """Return how much the masked moving image differs when warped by the field of the pair and of the masked pair.

    L = Σ W |(I_m M_m)∘Φ − (I_m M_m)∘Φ_M| / Σ W,   W = max(M_m∘Φ, M_m∘Φ_M, M_f), without gradient.

    Args:
        masked_moving: I_m M_m, (B, C, X, Y, Z); channels count alike.
        field: Φ, (B, 3, X, Y, Z) in voxels.
        masked_field: Φ_M, (B, 3, X, Y, Z) in voxels.
        mask_moving: M_m, (B, 1, X, Y, Z) in [0, 1].
        mask_fixed: M_f, (B, 1, X, Y, Z) in [0, 1].

    Returns:
        Scalar, at least 0, in the image's unit, float32 or more; both fields get a gradient. 0 when W is empty.

    Raises:
        ValueError: On shapes that do not fit each other.

    Source:
        Xie, Gao, Zheng: BIASNet, Medical Image Analysis 2025, 103913 (the idea; formula and weighting are ours).
    """
    require_same_shape(field, masked_field, ("field", "masked_field"))
    require_same_shape(mask_moving, mask_fixed, ("mask_moving", "mask_fixed"))
    require_same_grid(masked_moving, field, ("masked_moving", "field"))
    require_same_grid(masked_moving, mask_moving, ("masked_moving", "mask_moving"))
    image = at_least_float32(masked_moving)
    with torch.no_grad():
        warped_masks = [warp(mask_moving, each, padding="zeros") for each in (field, masked_field)]
        union = torch.maximum(torch.maximum(*warped_masks), mask_fixed)
    difference = (warp(image, field, padding="zeros") - warp(image, masked_field, padding="zeros")).abs()
    weighted = (union * difference.mean(dim=1, keepdim=True)).sum()
    return weighted / union.sum().clamp(min=1.0)
