"""Where labels lie in a label map."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

Box = tuple[slice, slice, slice]

# SciPy lists a box for every number up to the largest; atlases have labels of hundreds of millions.
_LARGEST_LISTED = 1 << 16


def label_boxes(labels: np.ndarray, values: Sequence[int]) -> dict[int, Box]:
    """Find the smallest box around each label.

    Args:
        labels: Integer label map, shape (X, Y, Z).
        values: Positive label values.

    Returns:
        Half-open index ranges per axis, by value; values that do not occur are left out.
    """
    if labels.max() < _LARGEST_LISTED:
        boxes = ndimage.find_objects(labels.astype(np.int32))
        return {value: boxes[value - 1] for value in values if 0 < value <= len(boxes) and boxes[value - 1] is not None}
    present, numbers = np.unique(labels, return_inverse=True)
    boxes = ndimage.find_objects(numbers.reshape(labels.shape).astype(np.int32) + 1)
    found = {int(value): box for value, box in zip(present, boxes, strict=True) if box is not None}
    return {value: found[value] for value in values if value in found}
