"""Which program may have written a displacement field in a form that is not read, told by its NIfTI header."""

from pathlib import Path

import numpy as np

from biasreg.core import nifti

DISPLACEMENT_INTENT = 1006
_FSL_INTENTS = range(2006, 2017)
POSITION_NAMES = {"mapping": "SPM", "nreg_trans": "NiftyReg"}
"""Intent names under which programs keep absolute positions, where a point is found, with the vector intent."""


def likely_origin(path: Path) -> str:
    """Say what a NIfTI file that is no canonical field probably is, and how other tools would misread it.

    Args:
        path: The file.

    Returns:
        A sentence, or nothing where the header gives no hint.

    Raises:
        ImageError: The file is missing or no NIfTI.
    """
    if not path.name.lower().endswith(nifti.NIFTI_ENDINGS):
        return ""
    image = nifti.load(path)
    return _origin_of(tuple(image.shape), int(image.header["intent_code"]))


def holds_positions(path: Path) -> str:
    """Name the program whose fields hold absolute positions, if the header says that this is one of them.

    Args:
        path: A field that can be read.

    Returns:
        The program, or nothing.
    """
    if not path.name.lower().endswith(nifti.NIFTI_ENDINGS):
        return ""
    name = bytes(np.asarray(nifti.load(path).header["intent_name"]).item()).decode("latin-1").strip("\0 ").lower()
    return POSITION_NAMES.get(name, "")


def _origin_of(shape: tuple[int, ...], intent: int) -> str:
    if intent in _FSL_INTENTS:
        return f"intent {intent} is FSL's (FNIRT): mm along the axes of its own voxel frame; convert it to ITK's form"
    if len(shape) == 4 and shape[3] == 3:
        return (
            "4-D files are kept by Learn2Reg and many networks, in VOXELS along the array axes, and by DIPY and FSL; "
            "ITK reads them as a series of three volumes, not as a field; convert unit, axes and form"
        )
    if len(shape) == 5 and shape[3:] == (1, 2):
        return "it holds two components: a 2-D field, and only 3-D is supported"
    if intent == DISPLACEMENT_INTENT:
        return (
            "intent 1006 (displacement vectors) has RAS components by ITK's reading, which negates x and y, while "
            "other tools take them as they are; find out which ones they are, make them LPS, and set intent 1007"
        )
    if len(shape) == 5:
        return "without the vector intent, ITK and ANTs read 5-D files as images, and nobody can tell LPS from RAS"
    return "it is an image, not a transform"
