"""Registers pairs of images with a trained model that is loaded once."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import biasreg
from biasreg.core.errors import CheckpointError, ImageError, PredictionError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import Image
from biasreg.core.serialization import content_hash
from biasreg.inference.ensemble import ensemble_displacement
from biasreg.inference.models import TrainedModel, training_notices
from biasreg.inference.native import native_displacement
from biasreg.inference.plausibility import check_content, content_notices
from biasreg.network.biasnet import BIASNet
from biasreg.network.build import build_network
from biasreg.network.checkpoint import Checkpoint, check_reference, load_checkpoint, load_network_state
from biasreg.network.lora import merge_lora
from biasreg.network.pretrained import installed_weights, load_weights
from biasreg.preprocessing.frames import FrameSource, read_frame_source
from biasreg.preprocessing.prealign import foreground_center
from biasreg.preprocessing.preprocess import canonical_grid, canonical_image
from biasreg.preprocessing.reference_files import reference_hash
from biasreg.spatial.invert import invert
from biasreg.spatial.native import moving_coordinates, warp_image
from biasreg.spatial.warp import in_field_of_view, sample

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InverseError:
    """How far from its start a point lands after going through the inverse and back, in mm.

    Measured on the fields as they are written, over the voxels of the moving grid that land inside the fixed grid.

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
        displacement: (X, Y, Z, 3) RAS mm on the fixed grid: fixed point p is found at p + d(p) in the moving image;
            rounded to a thousandth of a voxel.
        inverse: (X', Y', Z', 3) RAS mm on the moving grid: moving point q is found at q + d(q) in the fixed image.
        inverse_error: How well the two undo each other; None if no moving voxel lands inside the fixed grid.
        warped: The moving image on the fixed grid, float32 (X, Y, Z) per channel.
        seconds: Wall time per stage.
        notices: What a user should know about this pair.
    """

    displacement: NDArray[np.float32]
    inverse: NDArray[np.float32]
    inverse_error: InverseError | None
    warped: tuple[NDArray[np.float32], ...]
    seconds: dict[str, float] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


ROLES = ("moving", "fixed")
ROUNDING_VOXELS = 1e-3  # far below what a registration can be right by


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note the wall time of a block.

    Args:
        seconds: Where it is noted.
        stage: Under which name.
    """
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 4)


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
            CheckpointError: If a checkpoint cannot be read, or was trained with another configuration or reference
                image than the model's.
            WeightsError: If the pretrained weights that the model adapts are not installed, or are others.
            ImageError: If the reference image of an affine pre-alignment is missing or damaged.
        """
        plans = model.configuration.preprocessing
        reference = reference_hash(model.folder, plans)
        frames = read_frame_source(plans, model.folder)
        networks = _load_networks(model, reference)
        for notice in training_notices(model):
            logger.warning("%s", notice)
        return cls(networks, frames, device)

    def register(
        self, moving: Sequence[Image], fixed: Sequence[Image], initial: NDArray[np.float64] | None = None
    ) -> Prediction:
        """Register a pair.

        Args:
            moving: The moving image, one `Image` per channel.
            fixed: The fixed image, one `Image` per channel; its grid may differ from the moving one's.
            initial: (4, 4) matrix from fixed to moving points, RAS mm, in place of the planned pre-alignment.

        Returns:
            The registered pair.

        Raises:
            ImageError: If the number of channels is not the model's, or an image shows nothing.
            PredictionError: If a network gives numbers that are not finite.
        """
        self._check_channels(moving, fixed)
        plans = self.frames.plans
        grid = canonical_grid(plans)
        seconds: dict[str, float] = {}
        with timed(seconds, "prealign"):
            frames = self._frames(moving[0], fixed[0], initial)
        with timed(seconds, "resample"):
            canonical = [
                canonical_image(image, frame, plans) for image, frame in zip((moving, fixed), frames, strict=True)
            ]
            for name, image, item in zip(ROLES, (moving, fixed), canonical, strict=True):
                check_content(name, image, item)
        with timed(seconds, "network"):
            tensors = [torch.from_numpy(item.image)[None].to(self.device) for item in canonical]
            forward = ensemble_displacement(self.networks, tensors[0], tensors[1])
            _check_finite(forward)
        with timed(seconds, "field"):
            displacement = _rounded(
                native_displacement(forward, grid, (frames[1], frames[0]), fixed[0].geometry), fixed[0].geometry
            )
        with timed(seconds, "inverse"):
            inverse = _rounded(
                native_displacement(*_inverse(forward, grid), (frames[0], frames[1]), moving[0].geometry),
                moving[0].geometry,
            )
            inverse_error = _inverse_error(displacement, fixed[0].geometry, inverse, moving[0].geometry)
        with timed(seconds, "warp"):
            warped = tuple(warp_image(channel, displacement, fixed[0].geometry) for channel in moving)
        return Prediction(
            displacement=displacement,
            inverse=inverse,
            inverse_error=inverse_error,
            warped=warped,
            seconds=seconds,
            notices=tuple(
                notice
                for name, item in zip(ROLES, canonical, strict=True)
                for notice in content_notices(name, item, grid, plans.crop)
            ),
        )

    def _frames(
        self, moving: Image, fixed: Image, initial: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Find the frames of moving and fixed image; a given map leads from the fixed frame to the moving one."""
        center = foreground_center(fixed, self.frames.plans.modality)
        of_fixed = self.frames.frame(fixed, center)
        return self.frames.frame(moving, center) if initial is None else initial @ of_fixed, of_fixed

    def _check_channels(self, moving: Sequence[Image], fixed: Sequence[Image]) -> None:
        expected = len(self.frames.plans.normalization)
        for name, image in zip(ROLES, (moving, fixed), strict=True):
            if len(image) != expected:
                raise ImageError(
                    f"the {name} image has {len(image)} channel(s), the model was trained with {expected} · "
                    "give one file per channel, ending in _0000, _0001, ..."
                )


def _load_networks(model: TrainedModel, reference: str | None) -> list[BIASNet]:
    """Load the network of each fold; weights that the folds share are read once."""
    encoder, base = model.configuration.network.encoder, None
    networks = []
    for path in model.checkpoints:
        checkpoint = load_checkpoint(path, content_hash(model.configuration))
        check_reference(path, checkpoint.identity, reference)
        network = build_network(model.configuration.network)
        expected = checkpoint.identity.pretrained_hash
        if encoder.tuning != "full" and expected is not None:
            if base is None or base.sha256 != expected:
                base = installed_weights(model.results, encoder.init, expected)
            load_weights(network.encoder, base)
        _load_state(network, path, checkpoint)
        merge_lora(network)
        networks.append(network)
    return networks


def _load_state(network: BIASNet, path: Path, checkpoint: Checkpoint) -> None:
    try:
        load_network_state(network, checkpoint.weights)
    except RuntimeError as error:  # torch lists the tensors that do not fit, one a line
        written_by = ", ".join(f"{name} {version}" for name, version in checkpoint.versions.items())
        raise CheckpointError(
            f"the weights do not fit the network of biasreg {biasreg.__version__}: {' '.join(str(error).split())} · "
            f"{path} (written by {written_by}) · predict with the version that trained it, or train anew"
        ) from error


def _check_finite(displacement: Tensor) -> None:
    finite = torch.isfinite(displacement).all(dim=1)
    if not bool(finite.all()):
        share = 100 * (1 - finite.float().mean().item())
        raise PredictionError(
            f"the network's displacement is not finite in {share:.3g} % of the voxels · its weights are damaged or "
            "training went astray; choose another fold with -f, or train anew"
        )


def _rounded(displacement: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """Round to a thousandth of a voxel or finer, by a power of two in mm: the further digits of a float32 are noise.

    Files of rounded fields are a third smaller and faster to write.
    """
    step = 2.0 ** np.floor(np.log2(min(geometry.spacing) * ROUNDING_VOXELS))
    displacement *= np.float32(1 / step)
    np.rint(displacement, out=displacement)
    displacement *= np.float32(step)
    return displacement


def _inverse(displacement: Tensor, grid: Geometry) -> tuple[Tensor, Geometry]:
    """Invert a field that keeps its border value beyond its grid.

    The inverse does not keep its own border value there. It is made on a grid that is larger at each side by the
    largest displacement along that axis; from there on it keeps its value too.

    Args:
        displacement: (1, 3, X, Y, Z) in voxels of `grid`.
        grid: The canonical grid.

    Returns:
        The inverse in voxels, and its own, larger grid.
    """
    largest = displacement.abs().amax(dim=(0, 2, 3, 4)).ceil().int().tolist()
    margins = [min(margin, size) for margin, size in zip(largest, grid.shape, strict=True)]
    padded = F.pad(displacement, [margin for margin in reversed(margins) for _ in range(2)], mode="replicate")
    affine = grid.affine
    affine[:3, 3] -= affine[:3, :3] @ margins
    return invert(padded).displacement, Geometry.from_affine(affine, padded.shape[2:])


def _inverse_error(displacement: NDArray, fixed: Geometry, inverse: NDArray, moving: Geometry) -> InverseError | None:
    coordinates = torch.from_numpy(moving_coordinates(inverse, moving, fixed))[None]
    field = torch.from_numpy(np.ascontiguousarray(np.moveaxis(displacement, -1, 0)))[None]
    there_and_back = sample(field, coordinates)[0] + torch.from_numpy(inverse).movedim(-1, 0)
    lengths = there_and_back.square().sum(dim=0).sqrt()  # ten times as fast as torch's norm over the first axis
    distance = lengths[in_field_of_view(coordinates, fixed.shape)[0, 0]].numpy()
    if distance.size == 0:
        return None
    return InverseError(
        mean_mm=float(distance.mean(dtype=np.float64)),
        percentile95_mm=float(np.percentile(distance, 95)),
        max_mm=float(distance.max()),
    )
