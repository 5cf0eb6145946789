"""Image similarity: local normalised cross-correlation within a modality, MIND-SSC across modalities."""

from collections.abc import Callable
from functools import partial
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from biasreg.planning.plans import Similarity
from biasreg.spatial.guards import at_least_float32, require_same_grid, require_same_shape, require_volume

MIND_RADIUS = MIND_DILATION = 2  # of patches, and to neighbours, in voxels
_MIND_PATCH = 2 * MIND_RADIUS + 1

# Of a cube of voxels a mask shows nothing if it shows less than this part of one.
_LEAST_COUNT = 1e-3
# Added to each local variance of images in [0, 1]: a noise of 1/1000 of the range, below the step of an 8-bit image and
# ten times above the rounding of a float32 variance. Windows flatter than this count as uncorrelated.
_VARIANCE_FLOOR = 1e-6

# The six neighbours of a voxel, and the twelve pairs of them that are not opposite each other (Heinrich 2013, Fig. 2).
_NEIGHBOURS = ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))
_PAIRS = tuple((a, b) for a, b in combinations(range(6), 2) if a // 2 != b // 2)
# Bounds of MIND's local variance relative to its mean over the image, which keep flat regions from being all noise.
_MIND_VARIANCE_BOUNDS = (1e-3, 1e3)
_MIND_VARIANCE_FLOOR = 1e-12  # for constant images, whose mean variance is 0


def box_mean(volume: Tensor, window: int) -> Tensor:
    """Return the mean over a cube around each voxel; at the borders over the part of it inside the grid.

    The sums run axis by axis and double their length in each pass. On a CPU that takes, with its gradient, about a
    quarter of the time of average pooling axis by axis.

    Args:
        volume: (B, C, X, Y, Z), floating-point.
        window: Side of the cube in voxels, odd.

    Returns:
        (B, C, X, Y, Z) in the volume's dtype.

    Raises:
        ValueError: On a wrong shape, or a window that is even or less than 1.
    """
    require_volume(volume, "volume")
    counts = [_window_counts(size, window).to(volume) for size in volume.shape[2:]]
    return _box_sum(volume, window) / (counts[0].view(-1, 1, 1) * counts[1].view(-1, 1) * counts[2])


def dissimilarity(
    kind: Similarity,
    warped: Tensor,
    fixed: Tensor,
    *,
    window: int,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Return the loss of images of one modality (`lncc`), or of any two (`mind`).

    Args:
        kind: `lncc` for `local_ncc_loss`, `mind` for `mind_ssc_loss`.
        warped: Warped moving image (B, C, X, Y, Z).
        fixed: Fixed image of the same shape.
        window: Side of the window of `lncc` in voxels, odd.
        mask: As these functions take it.
        weight: The same.

    Returns:
        Scalar in [0, 1], float32 or more; lower is better.

    Raises:
        ValueError: As these functions do.
    """
    if kind == "lncc":
        return local_ncc_loss(warped, fixed, window=window, mask=mask, weight=weight)
    return mind_ssc_loss(warped, fixed, mask=mask, weight=weight)


def local_ncc_loss(
    warped: Tensor, fixed: Tensor, *, window: int = 9, mask: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Return 1 − the mean squared local cross-correlation.

    cc(x) = cov(W, F)² / ((var W + ε)(var F + ε)) over a window around x. A window without structure in either image
    counts as uncorrelated (cc = 0), so dragging background over an organ is never rewarded. Windows see only what lies
    inside the mask: the edge of a field of view is no structure.

    Args:
        warped: Warped moving image (B, C, X, Y, Z), intensities scaled to about [0, 1]; channels count alike.
        fixed: Fixed image of the same shape; it gets no gradient.
        window: Side of the window in voxels, odd.
        mask: Where both images have values, (B, 1, X, Y, Z) in [0, 1], or None for everywhere.
        weight: Where the similarity counts, (B, 1, X, Y, Z) at least 0, or None for wherever the mask is.

    Returns:
        Scalar in [0, 1], float32 or more; 0 when the images are equal up to a local gain (of either sign) and offset,
        or when no voxel has weight.

    Raises:
        ValueError: On unequal shapes or a wrong window.

    Source:
        Avants, Epstein, Grossman, Gee: Symmetric diffeomorphic image registration with cross-correlation, Medical Image
        Analysis 12(1), 2008, doi:10.1016/j.media.2007.06.004; the square as in VoxelMorph (Balakrishnan et al. 2019,
        arXiv:1809.05231), means within a mask as Knutsson, Westin: Normalized and differential convolution, CVPR 1993.
        The border counts only voxels inside the grid, and ε is added to each variance.
    """
    require_same_shape(warped, fixed, ("warped", "fixed"))
    warped, fixed = at_least_float32(warped), at_least_float32(fixed).detach()
    mask = _mask_or_ones(mask, fixed)
    mean = _masked_mean(mask, _box_sum(mask, window), window)
    fixed_mean, warped_mean = mean(fixed), mean(warped)
    fixed_variance = _variance(mean(fixed * fixed), fixed_mean)
    warped_variance = _variance(mean(warped * warped), warped_mean)
    covariance = mean(warped * fixed) - warped_mean * fixed_mean
    correlation = covariance.square() / (warped_variance * fixed_variance)
    return _weighted_mean(1.0 - correlation, mask if weight is None else weight)


def mind_ssc(image: Tensor, radius: int = MIND_RADIUS, dilation: int = MIND_DILATION) -> Tensor:
    """Return the modality-independent neighbourhood descriptor with self-similarity context.

    For each of the twelve pairs (a, b) of neighbours that are not opposite, D = mean over a patch of
    (I(x + a) − I(x + b))²; the descriptor is exp(−(D − min D) / V), V being the mean of D − min D over the pairs.

    Args:
        image: (B, 1, X, Y, Z), any intensities.
        radius: Radius of the patch in voxels, 0 or more.
        dilation: Distance of the six neighbours in voxels, at least 1.

    Returns:
        (B, 12, X, Y, Z) in (0, 1], float32 or more; unchanged by a gain of either sign and an offset of the image.

    Raises:
        ValueError: On a wrong shape or more than one channel, or a wrong radius or dilation.

    Source:
        Heinrich, Jenkinson, Papież, Brady, Schnabel: Towards realtime multimodal fusion for image-guided interventions
        using self-similarities, MICCAI 2013, doi:10.1007/978-3-642-40811-3_24. V is kept within 1/1000 and 1000 times
        its mean over the image, and the image's border voxels are repeated outwards.
    """
    require_volume(image, "image")
    if image.shape[1] != 1 or radius < 0 or dilation < 1:
        raise ValueError(
            f"image of shape {tuple(image.shape)}, radius {radius}, dilation {dilation}; "
            "expected one channel (B, 1, X, Y, Z), a radius of at least 0 and a dilation of at least 1"
        )
    return _descriptor(at_least_float32(image), dilation, partial(box_mean, window=2 * radius + 1))


def mind_ssc_loss(warped: Tensor, fixed: Tensor, *, mask: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    """Return the mean squared difference of the MIND-SSC descriptors.

    Args:
        warped: Warped moving image (B, C, X, Y, Z); each channel has descriptors of its own.
        fixed: Fixed image of the same shape, of any modality; it gets no gradient.
        mask: Where both images have values, (B, 1, X, Y, Z) in [0, 1], or None for everywhere. The descriptors of both
            look only there, so that the edge of a field of view is no structure. Voxels count where each pair of
            neighbours is seen somewhere in the patch.
        weight: Where the similarity counts, (B, 1, X, Y, Z) at least 0, or None for wherever the mask is.

    Returns:
        Scalar in [0, 1), float32 or more; 0 when no voxel counts.

    Raises:
        ValueError: On unequal shapes.
    """
    require_volume(warped, "warped")
    require_same_shape(warped, fixed, ("warped", "fixed"))
    batch, channels = warped.shape[:2]
    warped, fixed = at_least_float32(warped), at_least_float32(fixed).detach()
    mask = _mask_or_ones(mask, fixed)
    pairs_shown, count = _pairs_shown(mask)
    of_channels, counts = (part.repeat_interleave(channels, dim=0) for part in (pairs_shown, count))
    patch_mean = _masked_mean(of_channels, counts, _MIND_PATCH)
    one, other = (
        _descriptor(image.flatten(0, 1).unsqueeze(1), MIND_DILATION, patch_mean)  # (B·C, 12, X, Y, Z)
        for image in (warped, fixed)
    )
    difference = (one - other).view(batch, channels * len(_PAIRS), *warped.shape[2:])
    weight = mask if weight is None else weight
    require_same_grid(fixed, weight, ("fixed", "weight"))
    return _weighted_mean(difference.square(), weight * _all_known(count))


def is_comparable(kind: Similarity, mask: Tensor) -> Tensor:
    """Tell where enough is seen for a dissimilarity: with `mind`, something of each pair of neighbours.

    Args:
        kind: As in `dissimilarity`.
        mask: Where both images have values, (B, 1, X, Y, Z) in [0, 1].

    Returns:
        (B, 1, X, Y, Z) bool. Other voxels do not count; where none is left, the dissimilarity is 0 and says nothing.
    """
    if kind == "lncc":
        return mask > 0
    return _all_known(_pairs_shown(mask)[1]) & (mask > 0)


def _pairs_shown(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return where a mask shows both of each pair of neighbours, and how often in the patch around each voxel."""
    shown = _neighbours(mask, MIND_DILATION)
    pairs = torch.cat([shown[a] * shown[b] for a, b in _PAIRS], dim=1)  # (B, 12, X, Y, Z)
    return pairs, _box_sum(pairs, _MIND_PATCH)


def _all_known(count: Tensor) -> Tensor:
    return count.amin(dim=1, keepdim=True) >= _LEAST_COUNT


def _descriptor(image: Tensor, dilation: int, patch_mean: Callable[[Tensor], Tensor]) -> Tensor:
    """Return MIND-SSC of (B, 1, X, Y, Z), given how the mean over the patch around each voxel is taken."""
    shifted = _neighbours(image, dilation)
    distance = patch_mean(torch.cat([(shifted[a] - shifted[b]).square() for a, b in _PAIRS], dim=1))  # (B, 12, ...)
    distance = distance - distance.amin(dim=1, keepdim=True)
    variance = distance.mean(dim=1, keepdim=True)
    typical = variance.detach().mean(dim=(2, 3, 4), keepdim=True).clamp(min=_MIND_VARIANCE_FLOOR)
    lower, upper = (typical * bound for bound in _MIND_VARIANCE_BOUNDS)
    return torch.exp(-distance / variance.clamp(lower, upper))


def _mask_or_ones(mask: Tensor | None, fixed: Tensor) -> Tensor:
    """Return the mask in the images' precision, 1 everywhere without one."""
    if mask is None:
        return torch.ones_like(fixed[:, :1])
    require_volume(mask, "mask")
    require_same_grid(fixed, mask, ("fixed", "mask"))
    if mask.shape[1] != 1:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, expected one channel (B, 1, X, Y, Z)")
    return mask.to(fixed.dtype)


def _masked_mean(mask: Tensor, count: Tensor, window: int) -> Callable[[Tensor], Tensor]:
    """Return the function that takes the mean over what a mask shows of each cube, given the mask's sum there."""
    count = count.clamp(min=_LEAST_COUNT)
    return lambda volume: _box_sum(mask * volume, window) / count


def _box_sum(volume: Tensor, window: int) -> Tensor:
    """Return the sum over the part of a cube around each voxel that lies inside the grid."""
    if window < 1 or window % 2 == 0:
        raise ValueError(f"the window is {window} voxels; it must be odd and at least 1")
    for axis in (2, 3, 4):
        volume = _running_sum(volume, window, axis)
    return volume


def _running_sum(volume: Tensor, window: int, axis: int) -> Tensor:
    """Sum over a centred window along one axis, zeros beyond the border, from sums of lengths 1, 2, 4, ..."""
    size, reach = volume.shape[axis], window // 2
    padding = [0] * 6  # F.pad counts axes from the last one
    padding[2 * (4 - axis)] = padding[2 * (4 - axis) + 1] = reach
    run = F.pad(volume, padding)
    total, covered, length = None, 0, 1
    while length <= window:
        if window & length:
            piece = run.narrow(axis, covered, size)
            total = piece if total is None else total + piece
            covered += length
        if 2 * length <= window:
            shorter = run.shape[axis] - length
            run = run.narrow(axis, 0, shorter) + run.narrow(axis, length, shorter)
        length *= 2
    assert total is not None  # the window holds at least one voxel
    return total


def _window_counts(size: int, window: int) -> Tensor:
    """Return how many voxels of a centred window lie inside an axis, (size,) int64."""
    centre, reach = torch.arange(size), window // 2
    return (centre + reach).clamp(max=size - 1) - (centre - reach).clamp(min=0) + 1


def _variance(mean_of_square: Tensor, mean: Tensor) -> Tensor:
    """Return the variance, lifted by the floor; rounding may not make it negative."""
    return (mean_of_square - mean.square()).clamp(min=0.0) + _VARIANCE_FLOOR


def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the mean over all voxels and channels, weighted per voxel; 0 when no voxel has weight."""
    require_same_grid(values, weight, ("values", "weight"))
    spread = weight.to(values.dtype).expand_as(values)
    return (spread * values).sum() / spread.sum().clamp(min=torch.finfo(values.dtype).tiny)


def _neighbours(volume: Tensor, dilation: int) -> list[Tensor]:
    """Return the volume shifted to each of the six neighbours; border voxels are repeated outwards."""
    padded = F.pad(volume, (dilation,) * 6, mode="replicate")
    shape = volume.shape[2:]
    return [_crop(padded, [dilation * (1 + step) for step in steps], shape) for steps in _NEIGHBOURS]


def _crop(padded: Tensor, starts: list[int], shape: torch.Size) -> Tensor:
    """Return the part of a padded volume that starts at the given voxels and has the given grid."""
    x, y, z = (slice(start, start + size) for start, size in zip(starts, shape, strict=True))
    return padded[:, :, x, y, z]
