"""Whether a registration can be relied on: PASS, WARN or FAIL, with the reasons."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from biasreg.losses.similarity import local_ncc_loss, mind_ssc_loss
from biasreg.planning.plans import TrainingPlans
from biasreg.spatial.displacement import resize
from biasreg.spatial.warp import positions, sample

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

    Attributes:
        before: Dissimilarity after pre-alignment.
        after: Dissimilarity after registration.
        unrelated: Dissimilarity of the fixed image and the moving one mirrored along all axes: what chance gives.
        lost_percent: Share of the fixed image's anatomy, 0 to 100, that the field takes out of the moving image's field
            of view.
    """

    before: float | None
    after: float | None
    unrelated: float | None
    lost_percent: float


@torch.no_grad()
def measure_agreement(
    images: tuple[Tensor, Tensor], masks: tuple[Tensor, Tensor], displacement: Tensor, plans: TrainingPlans
) -> Agreement:
    """Compare two images before and after registration, by the similarity that the network was trained with.

    Args:
        images: Moving and fixed image, (1, C, X, Y, Z) in [0, 1].
        masks: Their fields of view, (1, 1, X, Y, Z), 1 inside.
        displacement: (1, 3, X', Y', Z') in voxels of its grid, which may be finer.
        plans: Kind of similarity.

    Returns:
        The comparison.
    """
    (moving, fixed), (moving_mask, fixed_mask) = images, masks
    coordinates = positions(resize(displacement, fixed.shape[2:]))
    anatomy = fixed_mask * (fixed > 0).any(dim=1, keepdim=True)
    lost = anatomy * (sample(moving_mask, coordinates, padding="border") < 0.5)
    everywhere = (2, 3, 4)
    return Agreement(
        before=_dissimilarity(moving, fixed, moving_mask * anatomy, plans),
        after=_dissimilarity(sample(moving, coordinates), fixed, sample(moving_mask, coordinates) * anatomy, plans),
        unrelated=_dissimilarity(moving.flip(everywhere), fixed, moving_mask.flip(everywhere) * anatomy, plans),
        lost_percent=100 * float(lost.sum()) / max(1.0, float(anatomy.sum())),
    )


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
    likeness = f"dissimilarity {after:.3f} after registration, {100 * share:.0f} % of that of unrelated images"
    text = f"dissimilarity {before:.3f} after pre-alignment, {after:.3f} after registration"
    least, loss = (part * before for part in LEAST_GAIN)
    grade = sum(before - after < limit for limit in (least, loss)) if share > ALIKE else 0
    gain = Check("similarity gain", _ORDER[grade], text if grade == 0 else f"{text}: hardly more alike, or less")
    return [gain, Check("likeness", _grade(share, UNLIKE), likeness)]


def _check_data(suspicions: Sequence[str] | None) -> list[Check]:
    if suspicions is None:
        return []  # a check that was not made is not passed
    if suspicions:
        return [Check("training data", "WARN", "; ".join(suspicions))]
    return [Check("training data", "PASS", "spacing, field of view and intensities are like the training images'")]


def _grade(value: float, limits: tuple[float, float]) -> Status:
    return _ORDER[sum(value > limit for limit in limits)]


def _dissimilarity(warped: Tensor, fixed: Tensor, weight: Tensor, plans: TrainingPlans) -> float | None:
    if not bool((weight > 0).any()):
        return None
    if plans.similarity == "mind":
        return float(mind_ssc_loss(warped, fixed, weight))
    return float(local_ncc_loss(warped, fixed, window=plans.similarity_window_voxels, weight=weight))
