"""Where the imaged anatomy lies in a volume."""

from collections.abc import Iterable

import numpy as np
from scipy import ndimage

# Half-way between air (-1000 HU) and soft tissue (0 HU): the usual threshold of a body mask.
BODY_THRESHOLD_HU = -500.0
# A volume counts as masked (skull-stripped, say) when its border is mostly one value, its minimum.
MASKED_BORDER_FRACTION = 0.9
MASKED_VOLUME_FRACTION = 0.05
MIXED = "mixed"


def common_modality(modalities: Iterable[str]) -> str:
    """Find the modality that later steps may assume of any image.

    Args:
        modalities: Modality of each case.

    Returns:
        The one that all have, or `mixed`, which promises nothing.
    """
    kinds = sorted(set(modalities))
    return kinds[0] if len(kinds) == 1 else MIXED


def foreground_mask(array: np.ndarray, modality: str) -> np.ndarray:
    """Mark the voxels that show anatomy.

    CT: the largest connected part above -500 HU. Images whose border is almost entirely their minimum (masked or
    skull-stripped ones): everything above the minimum. All others, such as cropped boxes: the whole grid.

    Args:
        array: Intensities, shape (X, Y, Z).
        modality: Name of the modality; `CT` (any case) is treated as Hounsfield units.

    Returns:
        Boolean array of the same shape, never empty.
    """
    mask = _body_mask(array) if modality.upper() == "CT" else _unmasked_part(array)
    return mask if mask.any() else np.ones(array.shape, dtype=bool)


def bounding_box(mask: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Find the half-open index range of the true voxels along each axis.

    Args:
        mask: Boolean array, shape (X, Y, Z), with at least one true voxel.

    Returns:
        ((start, stop), ...) per axis.
    """
    ranges = []
    for axis in range(mask.ndim):
        occupied = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        ranges.append((int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(ranges)


def _body_mask(array: np.ndarray) -> np.ndarray:
    components, count = ndimage.label(array > BODY_THRESHOLD_HU)
    if count == 0:
        return np.zeros(array.shape, dtype=bool)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    largest: np.ndarray = components == sizes.argmax()
    return largest


def _unmasked_part(array: np.ndarray) -> np.ndarray:
    minimum = array.min()
    above = array > minimum
    border = np.concatenate([np.take(above, index, axis=axis).ravel() for axis in range(3) for index in (0, -1)])
    is_masked = 1 - border.mean() >= MASKED_BORDER_FRACTION and above.mean() >= MASKED_VOLUME_FRACTION
    return above if is_masked else np.ones(array.shape, dtype=bool)
