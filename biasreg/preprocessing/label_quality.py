"""Whether a label that a segmentation tool found in a case can be trusted to train on."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from biasreg.core.geometry import Geometry
from biasreg.planning.foreground import bounding_box

# Our own limits. They are to catch what is plainly no organ, and to leave the doubtful to the eye: a label that is left
# out costs one case less to learn it from, a wrong one pulls the anatomy out of place.
MIN_VOXELS = 27  # a cube of three voxels a side: less has no shape that could be aligned
MIN_MAIN_SHARE = 0.5
MAX_BORDER_SHARE = 0.25  # more than a quarter in the outermost layer: at most some four slices of it are in the image
MAX_COVERED_SHARE = 0.5
MIN_AGREEMENT = 0.3  # what a structure of a few voxels reaches with thick slices; another structure is near 0
PIECES_PER_CLASS = 2  # organs come in pairs, and the image's border cuts one in two
_ALL_NEIGHBOURS = 26


@dataclass(frozen=True)
class LabelQuality:
    """What can be measured of a label without knowing the truth; the fields are those of `LabelRecord`."""

    voxels: int
    volume_mm3: float
    pieces: int
    main_share: float
    border_share: float
    covered_share: float


def measure_label(
    found: npt.NDArray[np.bool_], free: npt.NDArray[np.bool_], geometry: Geometry, num_classes: int
) -> LabelQuality:
    """Measure what a segmenter found of a label.

    Args:
        found: (X, Y, Z), what it found.
        free: (X, Y, Z), where no other label was drawn by hand.
        geometry: The grid.
        num_classes: Number of the segmenter's classes that the label is made of.

    Returns:
        The measures; all 0 where nothing is left.
    """
    visible = found & free
    voxels, all_voxels = int(np.count_nonzero(visible)), int(np.count_nonzero(found))
    if voxels == 0:
        return LabelQuality(0, 0.0, 0, 0.0, 0.0, 1.0 if all_voxels else 0.0)
    sizes = component_sizes(visible)
    inner = np.count_nonzero(visible[1:-1, 1:-1, 1:-1])
    return LabelQuality(
        voxels=voxels,
        volume_mm3=float(voxels * np.prod(geometry.spacing)),
        pieces=len(sizes),
        main_share=sum(sizes[: PIECES_PER_CLASS * num_classes]) / voxels,
        border_share=(voxels - inner) / voxels,
        covered_share=(all_voxels - voxels) / all_voxels,
    )


def component_sizes(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Count the voxels of each connected part (by faces, edges and corners).

    Args:
        mask: (X, Y, Z), with at least one true voxel.

    Returns:
        Voxels, the largest part first.
    """
    # It brings in scikit-image, which takes half a second and is needed here alone.
    from acvl_utils.morphology.morphology_helper import cc3d_label_with_component_sizes  # noqa: PLC0415

    box = tuple(slice(start, stop) for start, stop in bounding_box(mask))
    sizes = cc3d_label_with_component_sizes(np.ascontiguousarray(mask[box]), connectivity=_ALL_NEIGHBOURS)[1]
    return sorted((int(size) for size in sizes.values()), reverse=True)


def quality_fault(quality: LabelQuality) -> str | None:
    """Say why a label is not to be trained on.

    Args:
        quality: Its measures.

    Returns:
        The reason; None if nothing speaks against it.
    """
    if quality.covered_share > MAX_COVERED_SHARE:
        return f"{quality.covered_share:.0%} of it lies on labels that were drawn by hand as something else"
    if quality.voxels == 0:
        return "nothing was found"
    if quality.voxels < MIN_VOXELS:
        return f"tiny: {quality.voxels} voxels, fewer than {MIN_VOXELS}"
    if quality.main_share < MIN_MAIN_SHARE:
        return f"fragmented: {quality.pieces} pieces, the largest ones hold {quality.main_share:.0%} of it"
    if quality.border_share > MAX_BORDER_SHARE:
        return f"cut off: {quality.border_share:.0%} of its voxels touch the border of the image"
    return None


def dice(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    """Measure the overlap of two masks, at least one of which is not empty.

    Args:
        first: A mask.
        second: One of the same shape.

    Returns:
        Dice coefficient, 0 to 1.
    """
    return float(2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second)))
