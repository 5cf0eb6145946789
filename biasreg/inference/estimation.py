"""From a prepared pair to its field in the canonical frame: networks, refinement, and how well the images agree."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from biasreg.core.errors import PredictionError
from biasreg.core.geometry import Geometry
from biasreg.inference.ensemble import Ensemble, Views, ensemble
from biasreg.inference.features import feature_maps
from biasreg.inference.preparation import PreparedPair
from biasreg.inference.refinement import Level, are_shown, refine
from biasreg.inference.stages import timed
from biasreg.inference.trust import Agreement, lands_inside, measure_agreement
from biasreg.network.biasnet import BIASNet
from biasreg.planning.plans import Configuration, TrainingPlans
from biasreg.preprocessing.preprocess import CanonicalImage, canonical_grid

logger = logging.getLogger(__name__)

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


DEFAULT_OPTIONS = RegistrationOptions()


@dataclass(frozen=True)
class EstimatedPair:
    """What networks and refinement have found of a pair, in the canonical frame.

    Attributes:
        displacement: (1, 3, X, Y, Z) in voxels of its grid, on the CPU.
        grid: The canonical grid, or a finer one of refinement.
        refined: Whether the field was refined; where the device's memory does not suffice, it is the networks' own.
        answer: What the networks said.
        agreement: How the images agree.
        features: See `features.py`.
        seconds: Wall time per stage.
    """

    displacement: Tensor
    grid: Geometry
    refined: bool
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
    first, canonical = _level(prepared.canonical[0], device), canonical_grid(plans.preprocessing)
    views = Views(
        options.mirror_axes,
        levels="levels" in options.extras,
        covariance="uncertainty" in options.extras,
        one_at_a_time=one_at_a_time,
    )
    with timed(seconds, "network"):
        answer = ensemble(networks, first.moving, first.fixed, views)
        _check_finite(answer.displacement)
    refined = None
    if prepared.refine_steps:
        with timed(seconds, "refine"):
            refined = _refine(answer, first, prepared, plans.training, device)
    displacement, grid = answer.displacement, canonical
    if refined is not None:
        displacement, shape = refined, refined.shape[2:]
        grid = Geometry.centered(shape, [side / size for side, size in zip(grid.extent_mm, shape, strict=True)])
    with timed(seconds, "agreement"):
        inside = lands_inside(displacement, canonical, prepared.frames[0], prepared.images[0][0].geometry)
        agreement = measure_agreement(first, answer, inside, plans.training)
    wanted = "features" in options.extras
    features = feature_maps(networks[0].to(device), first.moving, first.fixed) if wanted else {}
    return EstimatedPair(
        displacement=displacement.cpu(),
        grid=grid,
        refined=refined is not None,
        answer=_on_cpu(answer),
        agreement=agreement,
        features=features,
        seconds=seconds,
    )


def _level(pair: tuple[CanonicalImage, CanonicalImage], device: torch.device) -> Level:
    """Bring both images of a grid to the device."""
    moving, fixed = (torch.from_numpy(item.image)[None].to(device) for item in pair)
    moving_mask, fixed_mask = (torch.from_numpy(item.mask)[None, None].to(device, torch.float32) for item in pair)
    return Level(moving, fixed, moving_mask, fixed_mask, channels=moving.shape[1])


def _refine(
    answer: Ensemble, first: Level, prepared: PreparedPair, plans: TrainingPlans, device: torch.device
) -> Tensor | None:
    """Refine on all grids, or without the finest ones, or not at all, as the device's memory allows."""
    finer = list(prepared.canonical[1:])
    while True:
        try:
            levels = itertools.chain([_with_semantics(first, answer)], (_level(pair, device) for pair in finer))
            return refine(answer.displacement, levels, plans, prepared.refine_steps)
        except torch.cuda.OutOfMemoryError:
            if not finer:
                break  # fewer folds on the device would not help: the networks have had their turn
        finer.pop()
        logger.warning("%s has too little memory for the finest grid: refined on a coarser one", device)
    logger.warning("%s has too little memory to refine this pair: the networks' field is kept", device)
    return None


def _with_semantics(level: Level, answer: Ensemble) -> Level:
    """Let the network's own segmentations count beside the intensities: of the labels that both images show."""
    if answer.semantics is None:
        return level
    shape = tuple(level.fixed.shape[2:])
    moving, fixed = [level.moving], [level.fixed]
    # The overlap leaves out a label that one image does not show, so that without it the result is the same. A network
    # may know a hundred labels, of which a scan shows a few: all of them at once, at full size, would fill the memory.
    for seen in zip(*(maps.split(1, dim=1) for maps in answer.semantics), strict=True):
        pair = [F.interpolate(each, size=shape, mode="trilinear", align_corners=False) for each in seen]
        if all(bool(are_shown(each)) for each in pair):
            moving.append(pair[0])
            fixed.append(pair[1])
    return replace(level, moving=torch.cat(moving, dim=1), fixed=torch.cat(fixed, dim=1))


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
