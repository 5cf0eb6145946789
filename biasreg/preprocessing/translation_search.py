"""Exhaustive search for the shift that lays one masked image onto another: the start of affine registration."""

import numpy as np
from scipy import fft

# Where the standard deviation in the overlap is below this fraction of the largest, the correlation is noise.
FLAT_FRACTION = 1e-3


def best_shift(
    fixed: np.ndarray, fixed_mask: np.ndarray, moving: np.ndarray, moving_mask: np.ndarray, min_overlap: float
) -> np.ndarray | None:
    """Find the shift s that maximises the correlation of fixed(x) and moving(x + s) over the overlap of their masks.

    All shifts by whole voxels are compared at once, in the Fourier domain. Outside its mask an image is unknown, not
    empty, so that cut fields of view do not pull on each other.

    Args:
        fixed: Intensities, shape (X, Y, Z).
        fixed_mask: Boolean array of the same shape.
        moving: Intensities, shape (X', Y', Z'), on voxels of the same size.
        moving_mask: Boolean array of the same shape.
        min_overlap: Smallest overlap that counts, as a fraction of the smaller mask.

    Returns:
        (3,) integer voxels; None if no shift overlaps enough, or none shows contrast.

    Source:
        Padfield 2012, Masked object registration in the Fourier domain (doi:10.1109/TIP.2011.2181402).
    """
    size = [fft.next_fast_len(a + b - 1, real=True) for a, b in zip(fixed.shape, moving.shape, strict=True)]
    f_1, f_x, f_xx = (fft.rfftn(moment, size).conj() for moment in _moments(fixed, fixed_mask))
    m_1, m_x, m_xx = (fft.rfftn(moment, size) for moment in _moments(moving, moving_mask))

    def summed(product: np.ndarray) -> np.ndarray:
        sums: np.ndarray = fft.irfftn(product, size)
        return sums

    overlap = np.maximum(np.rint(summed(f_1 * m_1)), 1)  # voxels per shift
    fixed_sum, moving_sum = summed(f_x * m_1), summed(f_1 * m_x)
    covariance = summed(f_x * m_x) - fixed_sum * moving_sum / overlap
    fixed_spread = np.sqrt(np.maximum(summed(f_xx * m_1) - fixed_sum**2 / overlap, 0))
    moving_spread = np.sqrt(np.maximum(summed(f_1 * m_xx) - moving_sum**2 / overlap, 0))
    enough = overlap >= max(1.0, min_overlap * min(fixed_mask.sum(), moving_mask.sum()))
    for spread in (fixed_spread, moving_spread):
        enough &= spread > FLAT_FRACTION * max(float(spread.max()), 1.0)
    if not enough.any():
        return None
    correlation = np.full(overlap.shape, -np.inf)
    correlation[enough] = covariance[enough] / (fixed_spread * moving_spread)[enough]
    best = np.array(np.unravel_index(int(correlation.argmax()), correlation.shape))
    # Shifts beyond the moving image's size are the negative ones, which the Fourier transform puts at the end.
    return np.where(best >= np.array(moving.shape), best - np.array(size), best)


def _moments(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask, image and squared image, zero outside the mask."""
    inside = mask.astype(np.float64)
    masked = image * inside
    return inside, masked, masked * masked
