"""Spatial augmentation of a pair, on the training device.

Both images of a pair move together by a shared random affine map, and each a little by one of its own, so that the
displacement to be found changes from step to step. There is no mirroring: left and right organs are different labels.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from biasreg.losses.objective import PairBatch
from biasreg.planning.plans import AugmentationPlans
from biasreg.spatial.warp import identity_grid, sample

_ROUNDING = 1e-3  # of weights that add up to 1


def pair_generator(seed: int, number: int, stream: int = 0) -> torch.Generator:
    """Return a CPU generator that depends on the run's seed and the number of the pair alone.

    Args:
        seed: Seed of the run, not negative.
        number: Number of the pair, counted over all pairs of the run.
        stream: Separates independent uses of one pair.
    """
    state = np.random.SeedSequence([seed, number, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def random_affine(rotation_deg: float, scaling: float, translation_mm: float, generator: torch.Generator) -> Tensor:
    """Draw an affine map: rotation about each axis in turn, after scaling along each axis, then a shift.

    Args:
        rotation_deg: Largest angle per axis, in degrees.
        scaling: Largest relative scaling per axis.
        translation_mm: Largest shift per axis, in mm.
        generator: CPU generator.

    Returns:
        Homogeneous matrix (4, 4) in mm, float64.
    """
    angles, scales, shifts = 2 * torch.rand(3, 3, generator=generator, dtype=torch.float64) - 1
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.diag(1 + scaling * scales)
    for axis, angle in enumerate((math.radians(rotation_deg) * angles).tolist()):
        first, second = [other for other in range(3) if other != axis]
        rotation = torch.eye(4, dtype=torch.float64)
        rotation[first, first] = rotation[second, second] = math.cos(angle)
        rotation[first, second], rotation[second, first] = -math.sin(angle), math.sin(angle)
        matrix = rotation @ matrix
    matrix[:3, 3] = translation_mm * shifts
    return matrix


def affine_coordinates(
    matrices: Tensor, shape: tuple[int, int, int], spacing: tuple[float, float, float], device: torch.device
) -> Tensor:
    """Map every voxel of a grid by affine maps about the grid's centre.

    x' = c + S⁻¹ (A S (x − c) + t), with the spacing S and the centre c = (shape − 1) / 2.

    Args:
        matrices: Homogeneous matrices (B, 4, 4) in mm.
        shape: Shape of the grid in voxels.
        spacing: Voxel size in mm.
        device: Device of the result.

    Returns:
        Coordinates (B, 3, X, Y, Z) in voxels, float32.
    """
    size = torch.tensor(spacing, dtype=torch.float64)
    centre = (torch.tensor(shape, dtype=torch.float64) - 1) / 2
    linear = matrices[:, :3, :3] * size / size[:, None]  # (B, 3, 3): S⁻¹ A S
    shift = centre + matrices[:, :3, 3] / size - linear @ centre  # (B, 3)
    grid = identity_grid(shape, device=device)[0].flatten(1)  # (3, N)
    coordinates = linear.to(grid) @ grid + shift.to(grid)[..., None]  # (B, 3, N)
    return coordinates.reshape(len(matrices), 3, *shape)


def augment_pairs(
    batch: PairBatch,
    plans: AugmentationPlans,
    spacing: tuple[float, float, float],
    generators: Sequence[torch.Generator],
) -> PairBatch:
    """Move the images of each pair by random affine maps, and their labels with them.

    Images are interpolated linearly, labels by nearest neighbour; both repeat their border voxels, so that they stay
    together, but there nothing is visible, nor where a voxel is interpolated across the end of a field of view. Each
    array is resampled once.

    Args:
        batch: Pairs on the training device.
        plans: Strength and probability.
        spacing: Voxel size in mm.
        generators: CPU generator of each pair.

    Returns:
        The batch on the same grid; the very same object when no pair of it was drawn for augmentation.
    """
    chosen = [bool(torch.rand((), generator=generator) < plans.probability) for generator in generators]
    if not any(chosen):
        return batch
    identity = torch.eye(4, dtype=torch.float64)
    maps = [
        _pair_maps(plans, generator) if use else (identity, identity)
        for use, generator in zip(chosen, generators, strict=True)
    ]
    x, y, z = batch.moving.shape[2:]
    moving_at, fixed_at = (
        affine_coordinates(torch.stack(matrices), (x, y, z), spacing, batch.moving.device)
        for matrices in zip(*maps, strict=True)
    )
    return batch._replace(
        moving=sample(batch.moving, moving_at, mode="linear", padding="border"),
        fixed=sample(batch.fixed, fixed_at, mode="linear", padding="border"),
        moving_labels=sample(batch.moving_labels, moving_at, mode="nearest", padding="border"),
        fixed_labels=sample(batch.fixed_labels, fixed_at, mode="nearest", padding="border"),
        moving_visible=_wholly_visible(batch.moving_visible, moving_at),
        fixed_visible=_wholly_visible(batch.fixed_visible, fixed_at),
        moving_mask=sample(batch.moving_mask, moving_at, mode="linear", padding="border"),
        fixed_mask=sample(batch.fixed_mask, fixed_at, mode="linear", padding="border"),
    )


def _wholly_visible(visible: Tensor, coordinates: Tensor) -> Tensor:
    """Sample a mask of 0 and 1; 1 where all that the image is interpolated from is visible."""
    return (sample(visible, coordinates, padding="zeros") > 1 - _ROUNDING).to(visible.dtype)


def _pair_maps(plans: AugmentationPlans, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    shared = random_affine(plans.shared_rotation_deg, plans.shared_scaling, 0.0, generator)
    single = (plans.single_rotation_deg, plans.single_scaling, plans.single_translation_mm)
    return shared @ random_affine(*single, generator), shared @ random_affine(*single, generator)
