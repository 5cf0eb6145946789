"""Frames: how each case comes into the canonical frame, in training and prediction alike."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from biasreg.core.dataset import Case
from biasreg.core.errors import ImageError, PlansError
from biasreg.core.geometry import mask_box
from biasreg.core.image_io import Image, read_image, read_labels, write_image
from biasreg.core.serialization import file_hash
from biasreg.planning.plans import PreprocessingPlans
from biasreg.preprocessing.prealign import (
    Reference,
    foreground_center,
    make_reference,
    refine_affine,
    register_affine,
    register_rigid,
    translation,
)
from biasreg.preprocessing.reference_files import FOCUS_FILE, REFERENCE_FILE, reference_files

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameSource:
    """What a frame is found from.

    Attributes:
        plans: The preprocessing plans.
        reference: Image that all cases are aligned to, when pre-alignment is `rigid`, `affine` or `affine_focus`.
        focus: Share of each of its voxels that belongs to the part that alignment is refined for, when it is
            `affine_focus`.
    """

    plans: PreprocessingPlans
    reference: Image | None = None
    focus: np.ndarray | None = None

    def frame(self, image: Image, shared_center: Sequence[float] | np.ndarray) -> np.ndarray:
        """Find the frame of an image.

        Args:
            image: First channel of the case.
            shared_center: World point (RAS mm) that becomes the canonical origin when pre-alignment is `none`.

        Returns:
            (4, 4) matrix from canonical mm to the image's world, RAS mm.
        """
        if self.plans.prealignment == "none":
            return translation(shared_center)
        if self.plans.prealignment == "center" or self.reference is None:
            return translation(foreground_center(image, self.plans.modality))
        # The stored reference already lies in the canonical frame. Each way starts from the same rigid map.
        pair = self.reference, image, self.plans.modality
        rigid = register_rigid(*pair)
        if self.plans.prealignment == "affine":
            return register_affine(*pair, rigid)
        return rigid if self.focus is None else refine_affine(*pair, self.focus, rigid)

    def is_reference(self, image: Image) -> bool:
        """Tell whether an image is the one that all others are aligned to.

        Args:
            image: First channel of a case.

        Returns:
            Whether the reference was made of it.
        """
        if self.reference is None:
            return False
        return np.array_equal(make_reference(image, None, self.plans.modality).image.array, self.reference.array)


def read_frame_source(plans: PreprocessingPlans, folder: Path) -> FrameSource:
    """Read what frames are found from.

    Args:
        plans: The preprocessing plans.
        folder: Folder of preprocessed cases, or of a trained model, that holds the reference image.

    Returns:
        The source of frames.
    """
    names = reference_files(plans)
    reference = read_image(folder / REFERENCE_FILE) if REFERENCE_FILE in names else None
    focus = read_image(folder / FOCUS_FILE).array if FOCUS_FILE in names else None
    return FrameSource(plans, reference, focus)


def reference_source(plans: PreprocessingPlans, case: Case) -> str:
    """Hash the raw files that the reference is made of, so that a change of them is noticed.

    Args:
        plans: The preprocessing plans.
        case: The reference case.

    Returns:
        SHA-256 of each file.
    """
    focus = case.labels if FOCUS_FILE in reference_files(plans) else None
    return " ".join(file_hash(path) for path in (case.images[0], focus) if path)


def build_reference(plans: PreprocessingPlans, case: Case) -> Reference:
    """Bring the case that all others are aligned to into the canonical frame, with its labels where those count.

    Args:
        plans: The preprocessing plans.
        case: The reference case.

    Returns:
        The reference; the same files give the same.

    Raises:
        PlansError: If alignment has a focus, but the case shows no labels any more.
    """
    focus = None
    if FOCUS_FILE in reference_files(plans):
        focus = read_labels(case.labels).array > 0 if case.labels else None
        if focus is None or not focus.any():
            raise PlansError(
                f"the plans align cases around the labels of {case.identifier}, which shows none now · "
                f"{case.labels or case.images[0]} · restore its label map, or run `biasreg_plan_and_preprocess` again"
            )
    image = read_image(case.images[0])
    return make_reference(image, focus, plans.modality, reference_origin(plans, case, image))


def reference_origin(plans: PreprocessingPlans, case: Case, image: Image) -> np.ndarray:
    """Find the world point of the reference case that becomes the canonical origin.

    Args:
        plans: The preprocessing plans.
        case: The reference case.
        image: Its first channel.

    Returns:
        (3,) RAS mm: the centre of the box around the anatomy, or around the labels where the grid is cropped to them.
    """
    if plans.crop == "labels" and case.labels:
        labels = read_labels(case.labels)
        return np.array(mask_box(labels.geometry, labels.array > 0)[0])
    return foreground_center(image, plans.modality)


def store_reference(folder: Path, plans: PreprocessingPlans, reference: Reference) -> None:
    """Write the reference, unless it is there already; what is damaged or was exchanged is replaced with a notice.

    Args:
        folder: Folder of preprocessed cases.
        plans: The preprocessing plans.
        reference: The reference.
    """
    arrays = {REFERENCE_FILE: reference.image.array}
    if reference.focus is not None:
        arrays[FOCUS_FILE] = reference.focus
    for name in reference_files(plans):
        path = folder / name
        if _holds(path, Image(arrays[name], reference.image.geometry)):
            continue
        if path.exists():
            logger.warning("%s is damaged, or not the one that was written: it is made anew", path)
        write_image(path, arrays[name], reference.image.geometry)


def _holds(path: Path, image: Image) -> bool:
    try:
        found = read_image(path)
    except ImageError:
        return False
    return np.array_equal(found.array, image.array) and found.geometry.is_close(image.geometry)
