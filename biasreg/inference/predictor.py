"""Registers pairs of images with a trained model that is loaded once."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biasreg.core.errors import ImageError
from biasreg.core.image_io import Image
from biasreg.inference.ensemble import ensemble_displacement
from biasreg.inference.models import TrainedModel
from biasreg.inference.native import native_displacement
from biasreg.network.biasnet import BIASNet
from biasreg.network.build import build_network
from biasreg.network.checkpoint import load_weights
from biasreg.preprocessing.prealign import foreground_center
from biasreg.preprocessing.preprocess import (
    CanonicalImage,
    FrameSource,
    canonical_grid,
    canonical_image,
    read_frame_source,
)
from biasreg.spatial.displacement import compose, voxels_to_mm
from biasreg.spatial.invert import invert
from biasreg.spatial.native import warp_image

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InverseError:
    """How far from its start a point lands after going forth and back, in mm on the canonical grid.

    Attributes:
        mean_mm: Mean.
        percentile95_mm: 95th percentile.
        max_mm: Largest.
    """

    mean_mm: float
    percentile95_mm: float
    max_mm: float


@dataclass(frozen=True)
class Prediction:
    """A registered pair.

    Attributes:
        displacement: (X, Y, Z, 3) RAS mm on the fixed grid: fixed point p is found at p + d(p) in the moving image.
        inverse: (X', Y', Z', 3) RAS mm on the moving grid: moving point q is found at q + d(q) in the fixed image.
        inverse_error: How well the two undo each other.
        warped: The moving image on the fixed grid, float32 (X, Y, Z) per channel.
        seconds: Wall time per stage.
        notices: What a user should know about this pair.
    """

    displacement: NDArray[np.float32]
    inverse: NDArray[np.float32]
    inverse_error: InverseError
    warped: tuple[NDArray[np.float32], ...]
    seconds: dict[str, float] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


# Beyond these fractions the user is told that the network did not see all of the anatomy.
OUTSIDE_NOTICE = 0.02


class Predictor:
    """A trained model, ready to register pairs.

    Attributes:
        networks: One network per fold; their fields are averaged.
        frames: How images are brought into the canonical frame.
        device: Where the networks run.
    """

    def __init__(self, networks: Sequence[BIASNet], frames: FrameSource, device: torch.device) -> None:
        self.networks = [network.to(device).eval() for network in networks]
        self.frames = frames
        self.device = device

    @classmethod
    def from_model(cls, model: TrainedModel, device: torch.device) -> "Predictor":
        """Load a trained model.

        Args:
            model: The model, as `find_model` gives it.
            device: Where its networks run.

        Returns:
            The predictor.

        Raises:
            CheckpointError: If a checkpoint cannot be read.
        """
        networks = []
        for path in model.checkpoints:
            weights, configuration = load_weights(path)
            network = build_network(configuration.network)
            network.load_state_dict(weights)
            networks.append(network)
        return cls(networks, read_frame_source(model.configuration.preprocessing, model.folder), device)

    def register(self, moving: Sequence[Image], fixed: Sequence[Image]) -> Prediction:
        """Register a pair.

        Args:
            moving: The moving image, one `Image` per channel.
            fixed: The fixed image, one `Image` per channel; its grid may differ from the moving one's.

        Returns:
            The registered pair.

        Raises:
            ImageError: If the number of channels is not the model's.
        """
        self._check_channels(moving, fixed)
        plans = self.frames.plans
        grid = canonical_grid(plans)
        seconds: dict[str, float] = {}
        with _timed(seconds, "prealign"):
            center = foreground_center(fixed[0], plans.modality)
            frames = [self.frames.frame(image[0], center) for image in (moving, fixed)]
        with _timed(seconds, "resample"):
            canonical = [
                canonical_image(image, frame, plans) for image, frame in zip((moving, fixed), frames, strict=True)
            ]
        with _timed(seconds, "network"):
            tensors = [torch.from_numpy(item.image)[None].to(self.device) for item in canonical]
            forward = ensemble_displacement(self.networks, tensors[0], tensors[1])
        with _timed(seconds, "field"):
            displacement = native_displacement(forward, grid, (frames[1], frames[0]), fixed[0].geometry)
        with _timed(seconds, "inverse"):
            backward = invert(forward).displacement
            inverse = native_displacement(backward, grid, (frames[0], frames[1]), moving[0].geometry)
        with _timed(seconds, "warp"):
            warped = tuple(warp_image(channel, displacement, fixed[0].geometry) for channel in moving)
        return Prediction(
            displacement=displacement,
            inverse=inverse,
            inverse_error=_inverse_error(forward, backward, plans.spacing),
            warped=warped,
            seconds=seconds,
            notices=_notices(canonical),
        )

    def _check_channels(self, moving: Sequence[Image], fixed: Sequence[Image]) -> None:
        expected = len(self.frames.plans.normalization)
        for name, image in (("moving", moving), ("fixed", fixed)):
            if len(image) != expected:
                raise ImageError(
                    f"the {name} image has {len(image)} channel(s), the model was trained with {expected} · "
                    "give one file per channel, ending in _0000, _0001, ..."
                )


def _inverse_error(forward: Tensor, backward: Tensor, spacing: tuple[float, float, float]) -> InverseError:
    distance = voxels_to_mm(compose(backward, forward), spacing).norm(dim=1).flatten().cpu().numpy()
    return InverseError(
        mean_mm=float(distance.mean()),
        percentile95_mm=float(np.percentile(distance, 95)),
        max_mm=float(distance.max()),
    )


def _notices(canonical: Sequence[CanonicalImage]) -> tuple[str, ...]:
    return tuple(
        f"{100 * item.foreground_outside:.1f} % of the {name} image's anatomy lies outside the grid that the network "
        "sees; there the field is continued from the grid's border"
        for name, item in zip(("moving", "fixed"), canonical, strict=True)
        if item.foreground_outside > OUTSIDE_NOTICE
    )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 4)
