"""Refine the field of one pair on that pair's own images: instance optimisation, without labels."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from biasreg.losses.overlap import soft_dice_loss
from biasreg.losses.similarity import dissimilarity
from biasreg.planning.plans import TrainingPlans
from biasreg.spatial.displacement import compose, resize
from biasreg.spatial.warp import positions, sample_visible

logger = logging.getLogger(__name__)

# The force is smoothed like a viscous fluid's, what it has moved so far like an elastic body's. Both in voxels; by
# default Greedy has 1.732 and 0.707, which is 0.005 Dice less on brains.
VISCOUS_SIGMA = 1.732
ELASTIC_SIGMA = 0.5
LARGEST_STEP_VOXELS = 0.5  # of a field that is smooth over more than a voxel: far from folding
# If the strongest pull of all set the pace, most voxels would hardly move.
UNLIMITED_SHARE = 0.999
_QUANTILE_VOXELS = 1_000_000  # enough to tell that share
# A level is settled when its last steps have lowered the loss by less than this share of it.
SETTLED_STEPS = 5
SETTLED_SHARE = 0.005
DEFAULT_STEPS = 30
_KERNEL_RADIUS_SIGMAS = 3.0
LEAST_LABEL_VOXELS = 1.0  # of a label that an image shows

# Radius 2, as Greedy's default. The recipe's wider window suits a field that is learnt over many pairs: on held-back
# brains 3, 5 and 7 voxels reached a Dice of 0.810, 0.813 and 0.810 (benchmarks/results/refinement_502_cpu.json).
WINDOW_VOXELS = 5


@dataclass(frozen=True)
class Level:
    """What one level of refinement looks at, all on one grid.

    Attributes:
        moving: (1, C + K, X, Y, Z): intensities in [0, 1], then the probabilities of K labels; K may be 0.
        fixed: The same of the fixed image.
        moving_mask: (1, 1, X, Y, Z), 1 inside the moving image's field of view.
        fixed_mask: (1, 1, X, Y, Z), 1 inside the fixed image's field of view.
        channels: C.
    """

    moving: Tensor
    fixed: Tensor
    moving_mask: Tensor
    fixed_mask: Tensor
    channels: int


@torch.no_grad()
def refine(displacement: Tensor, levels: Iterable[Level], plans: TrainingPlans, steps: int) -> Tensor:
    """Move a displacement further downhill on the similarity of the two images, coarse to fine.

    No labels are needed. Where a level holds the network's own segmentations, which in prediction the coarsest alone
    does, their overlap counts as it did in training, so that what labels have taught is not traded for intensities.

    The result is r(x) + u(x + r(x)), where u is the given displacement and r starts at 0. Each step warps the moving
    image once, and takes the force f = −∂loss/∂W · ∇W on the warped image W:

        g = G_viscous f;   s = ε g / max(|g|, q);   r(x) ← G_elastic (s(x) + r(x + s(x)))

    where q is larger than all |g| > 0 but the strongest 0.1 %, and ε is half a voxel. r is smooth by construction, and
    u is never smoothed, so that what the network has found stays. Of all steps of a level the best r is kept; the first
    is r as the level began. A level ends before its last step when it is settled.

    Args:
        displacement: u, (1, 3, X, Y, Z) in voxels of its grid.
        levels: Images from the coarsest to the finest grid, all over the displacement's field of view; asked for one
            by one.
        plans: Kind of similarity, and the weights of similarity and overlap.
        steps: Steps on each grid at most, at least 1.

    Returns:
        (1, 3, X', Y', Z') in voxels of the finest grid.

    Source:
        Joshi, Davis, Jomier, Gerig: Unbiased diffeomorphic atlas construction, NeuroImage 2004,
        doi:10.1016/j.neuroimage.2004.07.068 (greedy iteration); Yushkevich et al., Greedy (step and smoothing), whose
        transform starts from an affine map instead.
    """
    residual = torch.zeros_like(displacement)
    with torch.autocast(displacement.device.type, enabled=False):
        for level in levels:
            shape = level.fixed.shape[2:]
            residual = _descend(resize(displacement, shape), resize(residual, shape), level, plans, steps)
        return compose(residual, resize(displacement, residual.shape[2:]))


def _descend(start: Tensor, residual: Tensor, level: Level, plans: TrainingPlans, steps: int) -> Tensor:
    """Give the best residual of a level."""
    best, losses = residual, list[float]()
    while True:
        coordinates = positions(compose(residual, start))
        loss, force = _force(coordinates, level, plans)
        if not math.isfinite(loss):
            logger.warning("refinement has come to a loss that is not a number; what it had found before is kept")
            return best
        if loss < min(losses, default=float("inf")):
            best = residual
        losses.append(loss)
        if len(losses) > steps or _is_settled(losses):
            return best
        update = _limited(smooth(force, VISCOUS_SIGMA))
        residual = smooth(compose(update, residual), ELASTIC_SIGMA)


def _is_settled(losses: Sequence[float]) -> bool:
    """Tell whether further steps are not worth their time; the losses begin before the first step."""
    earlier = losses[:-SETTLED_STEPS]
    return bool(earlier) and min(earlier) - min(losses) <= SETTLED_SHARE * min(losses)


def _limited(force: Tensor) -> Tensor:
    """Turn a force into a step of half a voxel at most."""
    length = force.square().sum(dim=1, keepdim=True).sqrt()
    pulled = length[length > 0]
    if pulled.numel() == 0:
        return torch.zeros_like(force)
    usual = pulled[:: max(1, pulled.numel() // _QUANTILE_VOXELS)].quantile(UNLIMITED_SHARE)
    return force * (LARGEST_STEP_VOXELS / length.clamp(min=usual))


def _force(coordinates: Tensor, level: Level, plans: TrainingPlans) -> tuple[float, Tensor]:
    """Warp the moving image; give the loss, and in which direction each voxel should look for better."""
    warped, share = sample_visible(level.moving, level.moving_mask, coordinates)
    with torch.enable_grad():
        loss = _objective(warped.requires_grad_(), level, share * level.fixed_mask, plans)
        (slope,) = torch.autograd.grad(loss, warped)
    warped = warped.detach()
    pulls = [(slope * _gradient(warped, share > 0, axis)).sum(dim=1, keepdim=True) for axis in (2, 3, 4)]
    return float(loss.detach()), -torch.cat(pulls, dim=1)


def _gradient(image: Tensor, visible: Tensor, axis: int) -> Tensor:
    """Give the mean of the differences to both neighbours along an axis, or to the one that is visible, or 0."""
    both = visible.narrow(axis, 0, visible.shape[axis] - 1) & visible.narrow(axis, 1, visible.shape[axis] - 1)
    known = both.to(image.dtype)
    difference = image.diff(dim=axis) * known
    others = [0, 0] * (4 - axis)  # F.pad counts axes from the last one
    total, count = (F.pad(part, [*others, 1, 0]) + F.pad(part, [*others, 0, 1]) for part in (difference, known))
    return total / count.clamp(min=1)


def _objective(warped: Tensor, level: Level, mask: Tensor, plans: TrainingPlans) -> Tensor:
    """Weigh dissimilarity of the intensities and of the segmentations as in training."""
    images, labels = warped[:, : level.channels], warped[:, level.channels :]
    fixed_images, fixed_labels = level.fixed[:, : level.channels], level.fixed[:, level.channels :]
    loss = dissimilarity(plans.similarity, images, fixed_images, window=WINDOW_VOXELS, mask=mask)
    loss = plans.weights.similarity * loss
    if labels.shape[1] == 0:
        return loss
    seen = mask > 0.5
    labels, fixed_labels = labels * seen, fixed_labels * seen
    return loss + plans.weights.overlap * soft_dice_loss(
        labels, fixed_labels, are_shown(labels) & are_shown(fixed_labels)
    )


def are_shown(labels: Tensor) -> Tensor:
    """Tell which labels an image shows: those that fill more than a voxel.

    Args:
        labels: Probabilities, (B, K, X, Y, Z).

    Returns:
        (B, K) bool.
    """
    return labels.flatten(2).sum(dim=2) > LEAST_LABEL_VOXELS


def smooth(field: Tensor, sigma: float) -> Tensor:
    """Smooth a field by a Gaussian, axis by axis; beyond the grid the border's value counts.

    Each axis is one product with a matrix, which on a core is several times as fast as adding up shifted fields.

    Args:
        field: (1, C, X, Y, Z).
        sigma: Standard deviation in voxels.

    Returns:
        The same shape.
    """
    x, y, z = (_gaussian(size, sigma, field) for size in field.shape[2:])
    lines = (x @ field.flatten(3)).view_as(field)
    return y @ lines @ z.T


def _gaussian(size: int, sigma: float, like: Tensor) -> Tensor:
    """Give the matrix that smooths `size` voxels, (size, size), of the dtype and on the device of `like`."""
    radius = max(1, round(_KERNEL_RADIUS_SIGMAS * sigma))
    offsets = torch.arange(-radius, radius + 1, device=like.device)
    weights = torch.exp(-0.5 * (offsets.to(like.dtype) / sigma) ** 2)
    weights /= weights.sum()
    rows = torch.arange(size, device=like.device)[:, None].expand(size, len(offsets))
    matrix = like.new_zeros(size, size)
    return matrix.index_put_((rows, (rows + offsets).clamp(0, size - 1)), weights.expand_as(rows), accumulate=True)
