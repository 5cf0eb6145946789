"""Frames: how each case comes into the canonical frame, in training and prediction alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from biasreg.core.dataset import Case
from biasreg.core.image_io import Image, read_image, read_labels, write_image
from biasreg.core.serialization import file_hash
from biasreg.planning.plans import PreprocessingPlans
from biasreg.preprocessing.prealign import (
    foreground_center,
    make_reference,
    refine_affine,
    register_affine,
    translation,
)
from biasreg.preprocessing.reference_files import FOCUS_FILE, REFERENCE_FILE, reference_files


@dataclass(frozen=True)
class FrameSource:
    """What a frame is found from.

    Attributes:
        plans: The preprocessing plans.
        reference: Image that all cases are aligned to, when pre-alignment is `affine` or `affine_focus`.
        focus: Boolean array on its grid, true for the part that alignment is refined for, when it is `affine_focus`.
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
        # The stored reference already lies in the canonical frame.
        modalities = (self.plans.modality, self.plans.modality)
        matrix = register_affine(self.reference, image, modalities)
        return matrix if self.focus is None else refine_affine(self.reference, image, modalities, self.focus, matrix)


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
    focus = read_labels(folder / FOCUS_FILE).array > 0 if FOCUS_FILE in names else None
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


def write_reference(folder: Path, plans: PreprocessingPlans, case: Case) -> None:
    """Write the reference image and, where alignment has a focus, the mask of what the case's labels show.

    Args:
        folder: Folder of preprocessed cases.
        plans: The preprocessing plans.
        case: The reference case.
    """
    focus = read_labels(case.labels).array > 0 if case.labels else None
    reference = make_reference(read_image(case.images[0]), focus, plans.modality)
    write_image(folder / REFERENCE_FILE, reference.image.array, reference.image.geometry)
    if FOCUS_FILE in reference_files(plans) and reference.focus is not None:
        write_image(folder / FOCUS_FILE, reference.focus.astype(np.uint8), reference.image.geometry)
