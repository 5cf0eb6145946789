"""How much one masked coarse image tells about another one under a linear map."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from biasreg.core.geometry import Geometry

HISTOGRAM_BINS = 32
# Fewer voxels than this per filled bin of a joint histogram, and chance looks like information.
MIN_VOXELS = 64


class MaskedImage(NamedTuple):
    """An image on a coarse isotropic grid with RAS axes, and the part of it that counts.

    Attributes:
        array: float32 (X, Y, Z) in [0, 1].
        mask: bool (X, Y, Z), true where it counts.
        grid: The grid.
    """

    array: np.ndarray
    mask: np.ndarray
    grid: Geometry


class Overlap(NamedTuple):
    """What two masked images share under a map.

    Attributes:
        information: Mutual information in nats over the voxels of both masks.
        share: Part of the fixed mask that these are, 0 to 1.
        voxels: Their number.
    """

    information: float
    share: float
    voxels: int

    @property
    def coverage(self) -> float:
        """Information times share: a map that pushes anatomy out of the moving image gains nothing by it."""
        return self.information * self.share


def shared_information(fixed: MaskedImage, moving: MaskedImage, matrix: np.ndarray) -> Overlap:
    """Measure the information that two images share where both masks are true.

    Args:
        fixed: The fixed image.
        moving: The moving image.
        matrix: (4, 4) from fixed to moving grid coordinates (mm).

    Returns:
        Information and overlap; no information where they overlap in fewer than `MIN_VOXELS` voxels.
    """
    indices = np.linalg.inv(moving.grid.affine) @ matrix @ fixed.grid.affine
    linear, offset, shape = indices[:3, :3], indices[:3, 3], fixed.array.shape
    inside = ndimage.affine_transform(moving.mask.view(np.uint8), linear, offset, output_shape=shape, order=0) > 0
    inside &= fixed.mask
    voxels = int(np.count_nonzero(inside))
    share = voxels / max(int(np.count_nonzero(fixed.mask)), 1)
    if voxels < MIN_VOXELS:
        return Overlap(0.0, share, voxels)
    warped = ndimage.affine_transform(moving.array, linear, offset, output_shape=shape, order=1, mode="nearest")
    bins = [
        np.minimum((part[inside] * HISTOGRAM_BINS).astype(int), HISTOGRAM_BINS - 1) for part in (fixed.array, warped)
    ]
    counts = np.bincount(bins[0] * HISTOGRAM_BINS + bins[1], minlength=HISTOGRAM_BINS**2)
    joint = counts.reshape(HISTOGRAM_BINS, HISTOGRAM_BINS) / voxels
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return Overlap(float((joint[seen] * np.log(joint[seen] / apart[seen])).sum()), share, voxels)
