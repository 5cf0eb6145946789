"""What is done to a pair before the networks see it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from biasreg.core.errors import ImageError
from biasreg.core.image_io import Image
from biasreg.inference.plausibility import check_content, content_notices
from biasreg.inference.refinement import DEFAULT_STEPS
from biasreg.inference.stages import timed
from biasreg.planning.data_ranges import DataRanges, suspicions
from biasreg.planning.plans import PreprocessingPlans
from biasreg.preprocessing.frames import FrameSource
from biasreg.preprocessing.prealign import foreground_center, joins_centers_only
from biasreg.preprocessing.preprocess import CanonicalImage, canonical_grid, canonical_image

ROLES = ("moving", "fixed")
# A grid that is finer than the images by more than this shows nothing new.
FINEST_SHARE = 0.75

Frames = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class PreparedPair:
    """A pair as the networks will see it.

    Attributes:
        images: Moving and fixed image, one `Image` per channel.
        frames: Of moving and fixed image, (4, 4), canonical mm → world RAS mm.
        canonical: Both on the canonical grid, then on finer and finer ones for refinement.
        refine_steps: Steps of refinement on each of these grids at most; 0 for none.
        suspicions: In what the images are unlike those of training; None where it is not known what these were like.
        notices: What a user should know about them.
        seconds: Wall time per stage.
    """

    images: tuple[tuple[Image, ...], tuple[Image, ...]]
    frames: Frames
    canonical: tuple[tuple[CanonicalImage, CanonicalImage], ...]
    refine_steps: int
    suspicions: tuple[str, ...] | None
    notices: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)


def prepare_pair(
    images: tuple[tuple[Image, ...], tuple[Image, ...]],
    source: FrameSource,
    initial: NDArray[np.float64] | None,
    ranges: DataRanges | None,
    refine_steps: int | None,
    finest_voxels: int,
) -> PreparedPair:
    """Bring moving and fixed image into the canonical frame.

    Args:
        images: Moving and fixed image, one `Image` per channel.
        source: What frames are found from.
        initial: (4, 4) matrix from fixed to moving points, RAS mm, in place of the planned pre-alignment.
        ranges: What the training images were like; None if that is not known.
        refine_steps: Steps of refinement on each grid at most; None for `DEFAULT_STEPS` where the images show more than
            the canonical grid can, else none.
        finest_voxels: Largest grid that refinement may use.

    Returns:
        The pair.

    Raises:
        ImageError: If the number of channels is not the model's, or an image shows nothing.
    """
    plans, seconds = source.plans, dict[str, float]()
    _check_channels(images, len(plans.normalization))
    with timed(seconds, "prealign"):
        frames = _frames(images, source, initial)
    finer = [] if refine_steps == 0 else _finer_plans(plans, _shown_mm(images, ranges), finest_voxels)
    with timed(seconds, "resample"):
        canonical = tuple(
            (canonical_image(images[0], frames[0], each), canonical_image(images[1], frames[1], each))
            for each in [plans, *finer]
        )
        named = list(zip(ROLES, images, canonical[0], strict=True))
        for role, image, item in named:
            check_content(role, image, item)
        grid = canonical_grid(plans)
        notices = [note for role, _, item in named for note in content_notices(role, item, grid, plans.crop)]
        notices += _alignment_notices(images, source, frames, initial)
        unlike = None
        if ranges is not None:
            unlike = tuple(text for role, image, _ in named for text in suspicions(role, image, ranges, plans))
    if refine_steps is None:
        refine_steps = DEFAULT_STEPS if finer else 0
    return PreparedPair(images, frames, canonical, refine_steps, unlike, tuple(notices), seconds)


def _check_channels(images: Sequence[Sequence[Image]], expected: int) -> None:
    for role, image in zip(ROLES, images, strict=True):
        if len(image) != expected:
            raise ImageError(
                f"the {role} image has {len(image)} channel(s), the model was trained with {expected} · "
                "give one file per channel, ending in _0000, _0001, ..."
            )


def _frames(
    images: tuple[tuple[Image, ...], tuple[Image, ...]], source: FrameSource, initial: NDArray[np.float64] | None
) -> Frames:
    """Find the frames of moving and fixed image; a given map leads from the fixed frame to the moving one."""
    moving, fixed = images[0][0], images[1][0]
    center = foreground_center(fixed, source.plans.modality)
    of_fixed = source.frame(fixed, center)
    return source.frame(moving, center) if initial is None else initial @ of_fixed, of_fixed


def _alignment_notices(
    images: Sequence[Sequence[Image]], source: FrameSource, frames: Frames, initial: NDArray[np.float64] | None
) -> list[str]:
    """Name the images for which registration found nothing better than centres; given maps were not looked for."""
    if source.reference is None:
        return []
    return [
        f"the {role} image is aligned to the model's reference by its centre alone: no turn of it fits better"
        for role, (channel, *_), frame in zip(ROLES, images, frames, strict=True)
        if (role == "fixed" or initial is None) and joins_centers_only(frame) and not source.is_reference(channel)
    ]


def _shown_mm(images: Sequence[Sequence[Image]], ranges: DataRanges | None) -> float:
    """Side of a cubic voxel as fine as both images are, or the training images, where these were coarser.

    What the networks learnt on all that the training images show is not to be traded for intensities.
    """
    trained = () if ranges is None else ([finest for finest, _ in ranges.spacing_mm],)
    return max(
        math.prod(spacing) ** (1 / 3) for spacing in (*(image[0].geometry.spacing for image in images), *trained)
    )


def _finer_plans(plans: PreprocessingPlans, shown_mm: float, finest_voxels: int) -> list[PreprocessingPlans]:
    """Halve the voxels of the canonical grid as often as that shows more, and the grid does not get too large."""
    finer, found = plans, list[PreprocessingPlans]()
    while True:
        x, y, z = finer.spacing
        i, j, k = finer.patch_size
        finer = replace(finer, spacing=(x / 2, y / 2, z / 2), patch_size=(2 * i, 2 * j, 2 * k))
        if math.prod(finer.spacing) ** (1 / 3) < FINEST_SHARE * shown_mm or math.prod(finer.patch_size) > finest_voxels:
            return found
        found.append(finer)
