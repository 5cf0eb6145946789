"""Sampling of volumes and label maps at arbitrary positions.

Coordinates are voxels of the sampled volume: component a runs along array axis a, and integers are voxel centres. The
conventions of `torch.nn.functional.grid_sample` (normalised coordinates, `align_corners`, reversed component order)
appear in `_interpolate` and nowhere else.

On CUDA the gradient of sampling adds atomically, so it is not bitwise reproducible.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from biasreg.spatial.guards import at_least_float32, require_field, require_same_grid, require_volume

Mode = Literal["linear", "nearest"]
Padding = Literal["border", "zeros"] | float

# Of what a mask shows in smaller shares nothing is shown: to divide by them would leave rounding and steep gradients.
_LEAST_SHARE = 1e-3

_GRID_SAMPLE_MODE = {"linear": "bilinear", "nearest": "nearest"}


def identity_grid(
    shape: Sequence[int], *, device: torch.device | str | None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the coordinates of every voxel of a grid.

    Args:
        shape: Grid shape (X, Y, Z) in voxels.
        device: Where the coordinates live.
        dtype: Their floating-point type.

    Returns:
        Coordinates (1, 3, X, Y, Z) in voxels; component a runs from 0 to shape[a] - 1 along axis a.

    Raises:
        ValueError: When the shape does not have three axes.
    """
    if len(shape) != 3:
        raise ValueError(f"grid shape {tuple(shape)} has {len(shape)} axes, expected three (X, Y, Z)")
    axes = [torch.arange(size, device=device, dtype=dtype) for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).unsqueeze(0)


def sample(volume: Tensor, coordinates: Tensor, *, mode: Mode = "linear", padding: Padding = "border") -> Tensor:
    """Interpolate a volume at the given positions.

    Outside the voxel centres the value follows `padding`:

    * `"border"`: the nearest voxel of the grid's surface.
    * `"zeros"`: 0 beyond the grid, blended linearly over one voxel from the outermost voxel centres on. It is
      continuous in the coordinates, hence meant for one-hot maps and masks in training.
    * a number: `border` within the field of view [-0.5, size - 0.5) of each axis, the number outside it. This is the
      rule of ITK's resampling filter with its default pixel value.

    Coordinates are used in float32 (float64 when given so), also under autocast.

    Args:
        volume: (B, C, X, Y, Z); integer volumes only with mode `nearest`.
        coordinates: (B, 3, X', Y', Z') in voxels of `volume`; a batch of 1 serves every volume.
        mode: `linear` (trilinear) or `nearest`. Nearest rounds halves to the even voxel, as `torch.round` does.
        padding: Value outside the grid, see above.

    Returns:
        (B, C, X', Y', Z') in the volume's dtype.

    Raises:
        ValueError: On a wrong shape, unequal batches, an unknown mode or padding, or linear sampling of integers.
    """
    _check_sampling(volume, coordinates, mode, padding)
    coordinates = at_least_float32(coordinates).expand(volume.shape[0], -1, -1, -1, -1)
    values = volume.to(torch.promote_types(volume.dtype, coordinates.dtype))
    if padding == "zeros":
        result = _interpolate(values, coordinates.to(values.dtype), mode, "zeros")
        result = _fade_singleton_axes(result, volume.shape[2:], coordinates, mode)
    else:
        result = _interpolate(values, coordinates.to(values.dtype), mode, "border")
    if not isinstance(padding, str):
        result = torch.where(in_field_of_view(coordinates, volume.shape[2:]), result, padding)
    return result.to(volume.dtype)


def sample_visible(volume: Tensor, mask: Tensor, coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """Interpolate a volume linearly from the voxels that a mask shows, and from no others.

    Args:
        volume: (B, C, X, Y, Z), floating-point.
        mask: Where the volume has values, (B, 1, X, Y, Z) in [0, 1]; beyond the grid there are none.
        coordinates: (B, 3, X', Y', Z') in voxels of `volume`.

    Returns:
        values: (B, C, X', Y', Z') in the volume's dtype, the mean of the neighbours weighted by the mask too; 0 where
            none of them is shown.
        share: (B, 1, X', Y', Z'), the same, the mask at these positions: 1 where all neighbours are shown, 0 where none
            is, or less than a thousandth of them.

    Raises:
        ValueError: As `sample`, or on a mask of another grid or of several channels.
    """
    require_volume(mask, "mask")
    require_same_grid(volume, mask, ("volume", "mask"))
    if mask.shape[1] != 1:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, expected one channel (B, 1, X, Y, Z)")
    mask = mask.to(volume.dtype)
    sampled = sample(torch.cat([volume * mask, mask], dim=1), coordinates, padding="zeros")
    values, share = sampled[:, :-1], sampled[:, -1:]
    shown = share >= _LEAST_SHARE
    return torch.where(shown, values / share.clamp(min=_LEAST_SHARE), 0), share * shown


def warp(volume: Tensor, displacement: Tensor, *, mode: Mode = "linear", padding: Padding = "border") -> Tensor:
    """Warp a volume: warped(x) = volume(x + u(x)).

    Args:
        volume: (B, C, X', Y', Z') on the grid whose voxels the displacement counts; usually of the same shape as it.
        displacement: u, (B, 3, X, Y, Z) in voxels.
        mode: As in `sample`.
        padding: As in `sample`.

    Returns:
        (B, C, X, Y, Z) on the displacement's grid, in the volume's dtype.

    Raises:
        ValueError: As `sample`.
    """
    return sample(volume, positions(displacement), mode=mode, padding=padding)


def positions(displacement: Tensor) -> Tensor:
    """Return x + u(x), the positions that a displacement points at.

    Args:
        displacement: u, (B, 3, X, Y, Z) in voxels.

    Returns:
        (B, 3, X, Y, Z) in voxels, float32 (float64 for a float64 displacement).

    Raises:
        ValueError: On a wrong shape.
    """
    require_field(displacement, "displacement")
    displacement = at_least_float32(displacement)
    return displacement + identity_grid(displacement.shape[2:], device=displacement.device, dtype=displacement.dtype)


def in_field_of_view(coordinates: Tensor, shape: Sequence[int]) -> Tensor:
    """Tell which positions lie within the voxels of a grid.

    Args:
        coordinates: (B, 3, X, Y, Z) in voxels.
        shape: Shape (X', Y', Z') of the grid.

    Returns:
        (B, 1, X, Y, Z) bool: -0.5 <= coordinate < size - 0.5 along every axis. Not-a-number lies outside.
    """
    upper = coordinates.new_tensor([size - 0.5 for size in shape]).view(1, 3, 1, 1, 1)
    return ((coordinates >= -0.5) & (coordinates < upper)).all(dim=1, keepdim=True)


def sample_labels(labels: Tensor, coordinates: Tensor, values: Sequence[int]) -> Tensor:
    """Interpolate a label map without inventing values: each label linearly, then the largest.

    The background takes part in the comparison; on a tie the smaller value wins. Positions outside the field of view
    are background. One label is held in memory at a time.

    Args:
        labels: (B, 1, X, Y, Z) integer; what is not in `values` counts as background.
        coordinates: (B, 3, X', Y', Z') in voxels of `labels`; a batch of 1 serves every label map.
        values: Foreground values to keep; 0 is the background.

    Returns:
        (B, 1, X', Y', Z') in the dtype of `labels`: 0 or one of `values`.

    Raises:
        ValueError: On a wrong shape, more than one channel, floating-point labels, or unequal batches.
    """
    _check_sampling(labels, coordinates, "nearest", 0.0)
    if labels.shape[1] != 1 or labels.is_floating_point():
        raise ValueError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}, expected integers (B, 1, X, Y, Z)")
    coordinates = at_least_float32(coordinates).expand(labels.shape[0], -1, -1, -1, -1)
    best = result = None
    for value, indicator in _indicators(labels, values):
        share = _interpolate(indicator.to(coordinates.dtype), coordinates, "linear", "border")
        if best is None or result is None:
            best, result = share, torch.full_like(share, value, dtype=labels.dtype)
        else:
            result = torch.where(share > best, value, result)
            best = torch.maximum(best, share)
    assert result is not None  # the background always comes
    return torch.where(in_field_of_view(coordinates, labels.shape[2:]), result, 0)


def warp_labels(labels: Tensor, displacement: Tensor, values: Sequence[int]) -> Tensor:
    """Warp a label map without inventing values.

    Args:
        labels: (B, 1, X', Y', Z') integer.
        displacement: u, (B, 3, X, Y, Z) in voxels of `labels`.
        values: Foreground values to keep; 0 is the background.

    Returns:
        (B, 1, X, Y, Z) in the dtype of `labels`.

    Raises:
        ValueError: As `sample_labels`.
    """
    return sample_labels(labels, positions(displacement), values)


def _indicators(labels: Tensor, values: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Yield (value, mask) of the background and of each label that is present, by ascending value."""
    foreground = torch.zeros_like(labels, dtype=torch.bool)
    present = []
    for value in sorted(set(values) - {0}):
        mask = labels == value
        if mask.any():
            present.append(value)
            foreground |= mask
    for value in sorted([0, *present]):
        yield value, (~foreground if value == 0 else labels == value)


def _interpolate(values: Tensor, coordinates: Tensor, mode: Mode, padding: Literal["border", "zeros"]) -> Tensor:
    """Call grid_sample; values and coordinates have one batch size and one dtype."""
    steps = [2.0 / max(size - 1, 1) for size in values.shape[2:]]
    normalised = coordinates * coordinates.new_tensor(steps).view(1, 3, 1, 1, 1) - 1.0
    grid = normalised.flip(1).movedim(1, -1)  # (B, X', Y', Z', 3), last axis of the volume first
    with torch.autocast(values.device.type, enabled=False):
        return F.grid_sample(values, grid, mode=_GRID_SAMPLE_MODE[mode], padding_mode=padding, align_corners=True)


def _fade_singleton_axes(result: Tensor, shape: Sequence[int], coordinates: Tensor, mode: Mode) -> Tensor:
    """Apply zero padding along axes of length 1, where grid_sample has no coordinate to see."""
    for axis in (axis for axis, size in enumerate(shape) if size == 1):
        distance = coordinates[:, axis : axis + 1].abs()
        weight = (1.0 - distance).clamp(min=0.0) if mode == "linear" else distance <= 0.5
        result = result * weight
    return result


def _check_sampling(volume: Tensor, coordinates: Tensor, mode: str, padding: Padding) -> None:
    """Refuse arguments that `sample` cannot serve."""
    require_volume(volume, "volume")
    require_field(coordinates, "coordinates")
    if coordinates.shape[0] not in (1, volume.shape[0]):
        raise ValueError(
            f"volume has shape {tuple(volume.shape)} but coordinates have shape {tuple(coordinates.shape)}; "
            "the batch sizes must be the same"
        )
    if mode not in _GRID_SAMPLE_MODE:
        raise ValueError(f"unknown mode {mode!r}; use 'linear' or 'nearest'")
    if isinstance(padding, str) and padding not in ("border", "zeros"):
        raise ValueError(f"unknown padding {padding!r}; use 'border', 'zeros' or a number")
    if mode == "linear" and not volume.is_floating_point():
        raise ValueError(f"linear sampling of {volume.dtype} values; use mode='nearest' or sample_labels")
