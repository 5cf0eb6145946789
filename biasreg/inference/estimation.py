"""From a prepared pair to its field in the canonical frame: networks, refinement, and how well the images agree."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biasreg.core.errors import PredictionError
from biasreg.core.geometry import Geometry
from biasreg.inference.ensemble import Ensemble, Views, ensemble
from biasreg.inference.features import feature_maps
from biasreg.inference.preparation import PreparedPair
from biasreg.inference.refinement import DEFAULT_STEPS, Level, refine
from biasreg.inference.stages import timed
from biasreg.inference.trust import Agreement, measure_agreement
from biasreg.network.biasnet import BIASNet
from biasreg.planning.plans import Configuration
from biasreg.preprocessing.preprocess import CanonicalImage, canonical_grid

EXTRAS = ("levels", "features", "uncertainty")


@dataclass(frozen=True)
class RegistrationOptions:
    """How pairs are registered.

    Attributes:
        mirror_axes: Test-time augmentation: axes of the canonical frame (0 left-right, 1 posterior-anterior, 2
            inferior-superior) along which the pair is mirrored, in all combinations; the fields are averaged.
        refine_steps: Steps of instance optimisation on each grid at most; 0 for none, None for a choice by the pair:
            `DEFAULT_STEPS` where its images show more than the networks' grid can, else none. Across modalities none.
        extras: What is wanted besides the field, out of `EXTRAS`.
    """

    mirror_axes: tuple[int, ...] = ()
    refine_steps: int | None = None
    extras: tuple[str, ...] = ()


DEFAULT = RegistrationOptions()


@dataclass(frozen=True)
class EstimatedPair:
    """What networks and refinement have found of a pair, in the canonical frame.

    Attributes:
        displacement: (1, 3, X, Y, Z) in voxels of its grid, on the CPU.
        grid: The canonical grid, or a finer one of refinement.
        answer: What the networks said.
        agreement: How the images agree.
        features: See `features.py`.
        seconds: Wall time per stage.
    """

    displacement: Tensor
    grid: Geometry
    answer: Ensemble
    agreement: Agreement
    features: dict[str, NDArray[np.float16]]
    seconds: dict[str, float]


def estimate_pair(
    networks: Sequence[BIASNet],
    prepared: PreparedPair,
    plans: Configuration,
    options: RegistrationOptions,
    device: torch.device,
    *,
    one_at_a_time: bool = False,
) -> EstimatedPair:
    """Find the field of a pair.

    Args:
        networks: One per fold, in evaluation mode.
        prepared: The pair.
        plans: What the networks were planned for.
        options: How pairs are registered.
        device: Where it is done.
        one_at_a_time: A network leaves the device again after its turn.

    Returns:
        The field in the canonical frame.

    Raises:
        PredictionError: If a network gives numbers that are not finite.
    """
    seconds = dict[str, float]()
    steps = options.refine_steps
    if steps is None:
        steps = DEFAULT_STEPS if len(prepared.canonical) > 1 else 0
    levels = [_level(pair, device) for pair in prepared.canonical]
    first, grid = levels[0], canonical_grid(plans.preprocessing)
    views = Views(
        options.mirror_axes,
        levels="levels" in options.extras,
        semantics=steps > 0,
        covariance="uncertainty" in options.extras,
        one_at_a_time=one_at_a_time,
    )
    with timed(seconds, "network"):
        answer = ensemble(networks, first.moving, first.fixed, views)
        _check_finite(answer.displacement)
    displacement = answer.displacement
    if steps:
        with timed(seconds, "refine"):
            seen = [_with_semantics(first, answer), *levels[1:]]
            displacement = refine(displacement, seen, plans.training, steps)
            shape = displacement.shape[2:]
            grid = Geometry.centered(shape, [side / size for side, size in zip(grid.extent_mm, shape, strict=True)])
    with timed(seconds, "agreement"):
        images, masks = (first.moving, first.fixed), (first.moving_mask, first.fixed_mask)
        agreement = measure_agreement(images, masks, displacement, plans.training)
    wanted = "features" in options.extras
    features = feature_maps(networks[0].to(device), first.moving, first.fixed) if wanted else {}
    return EstimatedPair(displacement.cpu(), grid, _on_cpu(answer), agreement, features, seconds)


def wants_finer_grids(options: RegistrationOptions, plans: Configuration) -> bool:
    """Tell whether a pair is to be prepared for refinement.

    Args:
        options: How pairs are registered.
        plans: What the networks were planned for.

    Returns:
        Whether refinement was asked for, or depends on what the images show.
    """
    if options.refine_steps is None:
        return plans.training.similarity == "lncc"
    return options.refine_steps > 0


def _level(pair: tuple[CanonicalImage, CanonicalImage], device: torch.device) -> Level:
    """Bring both images of a grid to the device."""
    moving, fixed = (torch.from_numpy(item.image)[None].to(device) for item in pair)
    moving_mask, fixed_mask = (torch.from_numpy(item.mask)[None, None].to(device, torch.float32) for item in pair)
    return Level(moving, fixed, moving_mask, fixed_mask, channels=moving.shape[1])


def _with_semantics(level: Level, answer: Ensemble) -> Level:
    """Let the network's own segmentations count beside the intensities."""
    if answer.semantics is None:
        return level
    moving, fixed = answer.semantics
    return replace(level, moving=torch.cat([level.moving, moving], dim=1), fixed=torch.cat([level.fixed, fixed], dim=1))


def _on_cpu(answer: Ensemble) -> Ensemble:
    return Ensemble(
        displacement=answer.displacement.cpu(),
        covariance=None if answer.covariance is None else answer.covariance.cpu(),
        levels=tuple(level.cpu() for level in answer.levels),
    )


def _check_finite(displacement: Tensor) -> None:
    finite = torch.isfinite(displacement).all(dim=1)
    if not bool(finite.all()):
        share = 100 * (1 - finite.float().mean().item())
        raise PredictionError(
            f"the network's displacement is not finite in {share:.3g} % of the voxels · its weights are damaged or "
            "training went astray; choose another fold with -f, or train anew"
        )
