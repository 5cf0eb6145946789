"""Intensities to the range [0, 1]."""

import numpy as np

from biasreg.planning.plans import ChannelNormalization


def normalize(array: np.ndarray, foreground: np.ndarray, plan: ChannelNormalization) -> np.ndarray:
    """Clip the intensities of one channel to the planned range and scale that range to [0, 1].

    Args:
        array: Intensities of one channel, shape (X, Y, Z).
        foreground: Boolean array of the same shape with at least one true voxel; percentiles are taken inside.
        plan: The range and its unit.

    Returns:
        float32 array of the same shape in [0, 1]; all zeros for a constant image.
    """
    lower, upper = plan.lower, plan.upper
    if plan.scheme == "percentile":
        lower, upper = (float(value) for value in np.percentile(array[foreground], (plan.lower, plan.upper)))
    if upper <= lower:
        return np.zeros(array.shape, dtype=np.float32)
    scaled: np.ndarray = (np.clip(array.astype(np.float32), lower, upper) - lower) / (upper - lower)
    return scaled.astype(np.float32)
