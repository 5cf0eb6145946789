"""Whether a registration can be relied on: PASS, WARN or FAIL, with the reasons."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from biasreg.core.geometry import Geometry
from biasreg.inference.ensemble import Ensemble
from biasreg.inference.refinement import Level, are_shown
from biasreg.losses.similarity import dissimilarity, is_comparable
from biasreg.planning.plans import TrainingPlans
from biasreg.spatial.displacement import resize
from biasreg.spatial.warp import positions, sample_visible

Status = Literal["PASS", "WARN", "FAIL"]
_ORDER: tuple[Status, ...] = ("PASS", "WARN", "FAIL")

# Each: what is still unsuspicious, and from where on the result should not be used without a look at it.
FOLDING_PERCENT = (0.1, 1.0)
LOST_PERCENT = (5.0, 30.0)
INVERSE_ERROR_VOXELS = (1.0, 3.0)
# Of the dissimilarity before: less gain than the first is little, a loss of more than the second is a wrong turn.
LEAST_GAIN = (0.02, -0.05)
# Of the dissimilarity of unrelated images: up to ALIKE there is nothing to gain; the others grade what is left.
ALIKE = 0.1
UNLIKE = (0.5, 0.75)
# One less the overlap of what the networks themselves take for the labels.
NO_OVERLAP = (0.25, 0.5)
_HALF_VOXEL = 0.5 + 1e-3  # as a mask of the field of view has it, with room for float32


@dataclass(frozen=True)
class Check:
    """One reason to trust a registration or not.

    Attributes:
        name: What was looked at.
        status: PASS, WARN or FAIL.
        text: What was found, with its figures.
    """

    name: str
    status: Status
    text: str


@dataclass(frozen=True)
class Trust:
    """The verdict on a pair.

    Attributes:
        status: That of the worst check.
        checks: All checks.
    """

    status: Status
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Agreement:
    """How two images agree over the fixed image's anatomy, on the canonical grid; None where nothing of it overlaps.

    Refinement makes any two images alike, so that only what the networks found tells whether they belong together.

    Attributes:
        before: Dissimilarity after pre-alignment.
        after: Dissimilarity as the networks register the pair.
        unrelated: Dissimilarity of the fixed image and the moving one mirrored along all axes: what chance gives.
        lost_percent: Share of the fixed image's anatomy, 0 to 100, that the refined field takes out of the moving
            image's field of view.
        overlap: Mean Dice, 0 to 1, of the labels as the networks segment them in both images, by their own field; None
            where they segment nothing.
    """

    before: float | None
    after: float | None
    unrelated: float | None
    lost_percent: float
    overlap: float | None


@torch.no_grad()
def lands_inside(displacement: Tensor, canonical: Geometry, frame: NDArray[np.float64], moving: Geometry) -> Tensor:
    """Tell which voxels a displacement sends into the moving image's field of view.

    That is asked of the image's own grid: it may end before the canonical grid does, or go on beyond it.

    Args:
        displacement: (1, 3, X', Y', Z') in voxels of its grid, the canonical one or a finer one.
        canonical: The canonical grid.
        frame: (4, 4) canonical mm → world RAS mm of the moving image.
        moving: The moving image's grid; voxels count with their whole volume.

    Returns:
        (1, 1, X, Y, Z) bool on the canonical grid. Not-a-number lies outside.
    """
    x, y, z = positions(resize(displacement, canonical.shape)).unbind(1)
    inside = torch.ones_like(x, dtype=torch.bool)
    to_moving = np.linalg.inv(moving.affine) @ frame @ canonical.affine
    for (a, b, c, offset), size in zip(to_moving[:3].tolist(), moving.shape, strict=True):
        found = a * x + b * y + c * z + offset
        inside &= (found >= -_HALF_VOXEL) & (found <= size - 1 + _HALF_VOXEL)
    return inside[:, None]


@torch.no_grad()
def measure_agreement(level: Level, answer: Ensemble, inside: Tensor, plans: TrainingPlans) -> Agreement:
    """Compare two images before and after registration, by the similarity that the network was trained with.

    Args:
        level: The images on the canonical grid; what is there besides intensities is not looked at.
        answer: What the networks say.
        inside: Where the result stays in the moving image's field of view, as `lands_inside` gives it.
        plans: Kind of similarity.

    Returns:
        The comparison.
    """
    moving, fixed = level.moving[:, : level.channels], level.fixed[:, : level.channels]
    anatomy = level.fixed_mask * (fixed > 0).any(dim=1, keepdim=True)
    everywhere = (2, 3, 4)
    found = positions(resize(answer.displacement, fixed.shape[2:]))
    candidates = (
        (moving, level.moving_mask),
        sample_visible(moving, level.moving_mask, found),
        (moving.flip(everywhere), level.moving_mask.flip(everywhere)),
    )
    before, after, unrelated = (
        _dissimilarity(image, fixed, level.fixed_mask * mask, anatomy, plans) for image, mask in candidates
    )
    return Agreement(
        before=before,
        after=after,
        unrelated=unrelated,
        lost_percent=100 * float((anatomy * ~inside).sum()) / max(1.0, float(anatomy.sum())),
        overlap=None if answer.semantics is None else _overlap(answer.semantics, level, answer.displacement),
    )


def _overlap(semantics: tuple[Tensor, Tensor], level: Level, displacement: Tensor) -> float | None:
    """Compare two segmentations, within both fields of view, over the labels that both show there.

    It is 0 if each shows others, None if they show none.

    Dice = 2 Σ w f / (Σ w² + Σ f²) is 1 where both are equal, also where they are uncertain.
    """
    x, y, z = semantics[1].shape[2:]
    visible, fixed_visible = (F.adaptive_avg_pool3d(mask, (x, y, z)) for mask in (level.moving_mask, level.fixed_mask))
    warped, share = sample_visible(semantics[0], visible, positions(resize(displacement, (x, y, z))))
    moved, kept = (labels * share * fixed_visible for labels in (warped, semantics[1]))
    in_moving, in_fixed = (are_shown(part)[0] for part in (moved, kept))
    both = in_moving & in_fixed
    if not bool(both.any()):
        return 0.0 if bool((in_moving | in_fixed).any()) else None
    moved, kept = (part[0, both].flatten(1) for part in (moved, kept))
    return float((2 * (moved * kept).sum(dim=1) / (moved.square() + kept.square()).sum(dim=1)).mean())


def judge(
    folding_percent: float,
    inverse_error_voxels: float | None,
    agreement: Agreement,
    suspicions: Sequence[str] | None,
) -> Trust:
    """Give the verdict on a pair.

    Args:
        folding_percent: Share of the voxels where the transform folds, 0 to 100.
        inverse_error_voxels: 95th percentile of the inverse error in voxels; None where it cannot be measured.
        agreement: How the images agree.
        suspicions: What is unusual about the images, compared with those that the model was trained on; None where it
            is not known what these were like.

    Returns:
        All checks, and the worst of them.
    """
    checks = [
        Check("folding", _grade(folding_percent, FOLDING_PERCENT), f"{folding_percent:.3g} % of the voxels fold"),
        _check_inverse(inverse_error_voxels),
        Check(
            "field of view",
            _grade(agreement.lost_percent, LOST_PERCENT),
            f"{agreement.lost_percent:.3g} % of the fixed anatomy is taken out of the moving image's field of view",
        ),
        *_check_likeness(agreement),
        *_check_overlap(agreement.overlap),
        *_check_data(suspicions),
    ]
    return Trust(max((check.status for check in checks), key=_ORDER.index), tuple(checks))


def _check_inverse(error: float | None) -> Check:
    if error is None:
        return Check("inverse", "FAIL", "no voxel of the moving image lands in the fixed image")
    text = f"95 % of the voxels come back to within {error:.3g} voxels (of the same volume, cubic) through the inverse"
    return Check("inverse", _grade(error, INVERSE_ERROR_VOXELS), text)


def _check_likeness(agreement: Agreement) -> list[Check]:
    before, after, unrelated = agreement.before, agreement.after, agreement.unrelated
    if after is None or before is None or unrelated is None:
        return [Check("likeness", "FAIL", "nothing of the fixed anatomy lies in the moving image's field of view")]
    share = after / unrelated if unrelated > 0 else 0.0
    likeness = f"dissimilarity {after:.3f} as the networks register, {100 * share:.0f} % of that of unrelated images"
    text = f"dissimilarity {before:.3f} after pre-alignment, {after:.3f} as the networks register"
    least, loss = (part * before for part in LEAST_GAIN)
    grade = sum(before - after < limit for limit in (least, loss)) if share > ALIKE else 0
    gain = Check("similarity gain", _ORDER[grade], text if grade == 0 else f"{text}: hardly more alike, or less")
    return [gain, Check("likeness", _grade(share, UNLIKE), likeness)]


def _check_overlap(overlap: float | None) -> list[Check]:
    if overlap is None:
        return []
    text = f"what the networks take for the same label overlaps by a Dice of {overlap:.2f}"
    return [Check("anatomy", _grade(1 - overlap, NO_OVERLAP), text)]


def _check_data(suspicions: Sequence[str] | None) -> list[Check]:
    if suspicions is None:
        return []  # a check that was not made is not passed
    if suspicions:
        return [Check("training data", "WARN", "; ".join(suspicions))]
    return [Check("training data", "PASS", "spacing, field of view and intensities are like the training images'")]


def _grade(value: float, limits: tuple[float, float]) -> Status:
    return _ORDER[sum(value > limit for limit in limits)]


def _dissimilarity(warped: Tensor, fixed: Tensor, mask: Tensor, anatomy: Tensor, plans: TrainingPlans) -> float | None:
    """Compare two images on the fixed anatomy, where both have values; None where they share nothing of it."""
    weight = mask * anatomy * is_comparable(plans.similarity, mask)
    if not bool((weight > 0).any()):
        return None
    window = plans.similarity_window_voxels
    return float(dissimilarity(plans.similarity, warped, fixed, window=window, mask=mask, weight=weight))
