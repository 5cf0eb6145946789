"""The frame of a training case, and whether a stored case still has the one that it would get now."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from biasreg.core.dataset import Case
from biasreg.core.given_frames import GivenFrame
from biasreg.core.image_io import Image
from biasreg.planning.plans import PreprocessingPlans
from biasreg.preprocessing.frames import read_frame_source, reference_origin
from biasreg.preprocessing.prealign import translation
from biasreg.preprocessing.storage import StoredCase, find_stored_case, read_stored_case


def case_frame(
    case: Case, image: Image, shared_center: Sequence[float], plans: PreprocessingPlans, folder: Path
) -> np.ndarray:
    """Find the frame of a training case: as planned, or by the user's transforms from that of another case.

    Args:
        case: The case.
        image: Its first channel.
        shared_center: World point (RAS mm) that becomes the canonical origin when pre-alignment is `none`.
        plans: The preprocessing plans.
        folder: Folder of preprocessed cases: holds the reference when cases are aligned by an affine map, and the case
            that the user's transforms start from.

    Returns:
        (4, 4) matrix from canonical mm to the image's world, RAS mm.

    Raises:
        PlansError: If the case that the transforms start from is not stored.
        ImageError: If a transform cannot be used.
    """
    if case.given:
        return _follow(case.given, read_stored_case(folder, case.given.anchor, "run `biasreg_preprocess` again"))
    if case.identifier == plans.reference_case:
        return translation(reference_origin(plans, case, image))  # as its image was brought into the frame
    return read_frame_source(plans, folder).frame(image, shared_center)


def is_complete(
    case: Case, shared_center: Sequence[float], plans: PreprocessingPlans, folder: Path, current_hash: str
) -> bool:
    """Tell whether a case is stored as it would be now.

    Args:
        case: The case.
        shared_center: World point (RAS mm) that becomes the canonical origin when pre-alignment is `none`.
        plans: The preprocessing plans, those that the folder was made with.
        folder: Folder of preprocessed cases.
        current_hash: Hash of its raw files.

    Returns:
        False also where the files are not whole.
    """
    record = find_stored_case(folder, case.identifier)
    if record is None or (record.subject, record.modality) != (case.subject, case.modality):
        return False
    if record.source_hash != current_hash:
        return False
    if case.given:
        anchor = find_stored_case(folder, case.given.anchor)
        return anchor is not None and np.array_equal(np.array(record.frame), _follow(case.given, anchor))
    # The centre that all share may have moved.
    return plans.prealignment != "none" or np.array_equal(np.array(record.frame), translation(shared_center))


def _follow(given: GivenFrame, anchor: StoredCase) -> np.ndarray:
    frame: np.ndarray = given.matrix @ np.array(anchor.frame)
    return frame
