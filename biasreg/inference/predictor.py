"""Registers pairs of images with a trained model that is loaded once."""

import logging
import math
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biasreg.core.errors import InputError
from biasreg.core.geometry import Geometry
from biasreg.core.image_objects import ImageLike, to_channels
from biasreg.core.transforms import FieldPart
from biasreg.evaluation.metrics import field_metrics
from biasreg.inference.ensemble import Ensemble
from biasreg.inference.estimation import DEFAULT_OPTIONS, EXTRAS, EstimatedPair, RegistrationOptions, estimate_pair
from biasreg.inference.inversion import inverse_error, invert_beyond_border
from biasreg.inference.loading import load_networks, read_ranges
from biasreg.inference.models import ONLY_MODEL, ModelRequest, TrainedModel, find_model, training_notices
from biasreg.inference.native import native_displacement, native_map, rounded
from biasreg.inference.prediction import FieldQuality, Prediction
from biasreg.inference.preparation import Frames, PreparedPair, prepare_pair
from biasreg.inference.stages import timed
from biasreg.inference.trust import judge
from biasreg.network.biasnet import BIASNet
from biasreg.network.device import select_device
from biasreg.planning.data_ranges import DataRanges
from biasreg.planning.plans import Configuration
from biasreg.preprocessing.frames import FrameSource, read_frame_source
from biasreg.preprocessing.preprocess import canonical_grid
from biasreg.spatial.displacement import resize
from biasreg.spatial.native import warp_image
from biasreg.spatial.transform_chain import polish_inverse

logger = logging.getLogger(__name__)

# Larger grids take a core longer than two seconds a step, and more memory than many GPUs have.
FINEST_VOXELS = {"cpu": 6_000_000, "gpu": 20_000_000}
# The inverse comes from the canonical grid, or a finer one of so many voxels; it is polished for the field as written.
INVERSE_VOXELS = 1_000_000
INVERSE_ITERATIONS = 40
INVERSE_TOLERANCE_VOXELS = 0.01


class Predictor:
    """A trained model, ready to register any number of pairs; it may be shared among threads.

    Attributes:
        networks: One network per fold; their fields are averaged.
        frames: How images are brought into the canonical frame.
        plans: What the networks were planned for.
        device: Where the networks run.
        options: How pairs are registered.
        ranges: What the training images were like; None where the model does not say.
    """

    def __init__(
        self,
        networks: Sequence[BIASNet],
        frames: FrameSource,
        plans: Configuration,
        device: torch.device,
        options: RegistrationOptions = DEFAULT_OPTIONS,
        ranges: DataRanges | None = None,
    ) -> None:
        self.networks = [network.to(device).eval().requires_grad_(False) for network in networks]
        self.frames = frames
        self.plans = plans
        self.device = device
        self.options = options
        self.ranges = ranges
        self._turn = threading.Lock()  # one pair at a time on the device
        self._one_at_a_time = False
        _check_options(options, len(networks))

    @classmethod
    def from_model(
        cls, model: TrainedModel, device: torch.device, options: RegistrationOptions = DEFAULT_OPTIONS
    ) -> "Predictor":
        """Load a trained model.

        Args:
            model: The model, as `find_model` gives it.
            device: Where its networks run.
            options: How pairs are registered.

        Returns:
            The predictor.

        Raises:
            CheckpointError: If a checkpoint cannot be read, or was trained with another configuration or reference
                image than the model's.
            WeightsError: If the pretrained weights that the model adapts are not installed, or are others.
            ImageError: If the reference image of an affine pre-alignment is missing or damaged.
            InputError: If uncertainty is wanted of one network that sees each pair once.
        """
        networks = load_networks(model)
        frames = read_frame_source(model.configuration.preprocessing, model.folder)
        predictor = cls(networks, frames, model.configuration, device, options, read_ranges(model))
        for notice in training_notices(model):
            logger.warning("%s", notice)
        return predictor

    @classmethod
    def from_results(
        cls,
        results: Path | str,
        request: ModelRequest = ONLY_MODEL,
        device: str | None = None,
        options: RegistrationOptions = DEFAULT_OPTIONS,
    ) -> "Predictor":
        """Load the trained model that fits a request from a root of results.

        Args:
            results: Root of the results.
            request: Dataset, plans, configuration and folds; what is left out is chosen if there is only one.
            device: `cuda`, `mps` or `cpu`; None for the best there is.
            options: How pairs are registered.

        Returns:
            The predictor.

        Raises:
            ModelNotFoundError: If no model fits, or more than one does.
            InputError: As `from_model`, or the device is not there.
        """
        return cls.from_model(find_model(Path(results), request), select_device(device), options)

    def register(
        self,
        moving: ImageLike | Sequence[ImageLike],
        fixed: ImageLike | Sequence[ImageLike],
        initial: NDArray[np.float64] | None = None,
    ) -> Prediction:
        """Register a pair.

        Args:
            moving: The moving image: a path, a SimpleITK or nibabel image, an array with its affine, or an `Image`;
                with several channels a list of these.
            fixed: The fixed image, likewise; its grid may differ from the moving one's.
            initial: (4, 4) matrix from fixed to moving points, RAS mm, in place of the planned pre-alignment.

        Returns:
            The registered pair.

        Raises:
            ImageError: If an image cannot be read, has not the model's number of channels, or shows nothing.
            GeometryError: If a grid is unusable.
            PredictionError: If a network gives numbers that are not finite.
        """
        prepared = self.prepare(moving, fixed, initial)
        return self.finish(prepared, self.estimate(prepared))

    def prepare(
        self,
        moving: ImageLike | Sequence[ImageLike],
        fixed: ImageLike | Sequence[ImageLike],
        initial: NDArray[np.float64] | None = None,
    ) -> PreparedPair:
        """Do the part of `register` that comes before the networks, on the CPU; arguments and errors are the same."""
        images = to_channels(moving, "moving"), to_channels(fixed, "fixed")
        finest = FINEST_VOXELS.get(self.device.type, FINEST_VOXELS["gpu"])
        steps = self.options.refine_steps
        if steps is None and self.plans.training.similarity != "lncc":
            steps = 0
        return prepare_pair(images, self.frames, initial, self.ranges, steps, finest)

    def estimate(self, prepared: PreparedPair) -> EstimatedPair:
        """Do the part of `register` that runs on the device, for one pair at a time.

        Where a CUDA device's memory does not suffice for the networks, they are brought there one by one from then on,
        and then the pair is registered on the CPU; where it does not suffice for refinement, that ends on a coarser
        grid, or is left out. There is a warning each.

        Args:
            prepared: What `prepare` gave.

        Returns:
            The field in the canonical frame.

        Raises:
            PredictionError: If a network gives numbers that are not finite.
        """
        with self._turn:
            given = self.networks, prepared, self.plans, self.options
            if len(self.networks) > 1 and not self._one_at_a_time:
                try:
                    return estimate_pair(*given, self.device)
                except torch.cuda.OutOfMemoryError:
                    self._clear_device()
                self._one_at_a_time = True  # for this pair, and those that follow
                logger.warning("%s has too little memory for all folds at once: one after the other", self.device)
            try:
                return estimate_pair(*given, self.device, one_at_a_time=self._one_at_a_time)
            except torch.cuda.OutOfMemoryError:
                self._clear_device()
            logger.warning("%s has too little memory for this pair: registered on the CPU", self.device)
            return estimate_pair(*given, torch.device("cpu"))

    def finish(self, prepared: PreparedPair, estimated: EstimatedPair) -> Prediction:
        """Do the part of `register` that comes after the networks: fields and images on the native grids.

        Args:
            prepared: What `prepare` gave.
            estimated: What `estimate` gave.

        Returns:
            The registered pair.
        """
        seconds = prepared.seconds | estimated.seconds
        (moving, fixed), (of_moving, of_fixed) = prepared.images, prepared.frames
        moving_grid, fixed_grid = moving[0].geometry, fixed[0].geometry

        def on_fixed(field: Tensor, grid: Geometry) -> NDArray[np.float32]:
            return rounded(native_displacement(field, grid, (of_fixed, of_moving), fixed_grid), fixed_grid)

        with timed(seconds, "field"):
            displacement = on_fixed(estimated.displacement, estimated.grid)
        with timed(seconds, "inverse"):
            field = FieldPart(displacement, fixed_grid, "displacement", "prediction")
            inverse = self._inverse(estimated, field, prepared.frames, moving_grid)
            error = inverse_error(displacement, fixed_grid, inverse, moving_grid)
        with timed(seconds, "warp"):
            warped = tuple(warp_image(channel, displacement, fixed_grid) for channel in moving)
        with timed(seconds, "folding"):
            metrics = field_metrics(displacement, fixed_grid)
            quality = FieldQuality(metrics.folding_percent, metrics.log_jacobian_std, error)
        with timed(seconds, "extras"):
            coarser = list(enumerate(estimated.answer.levels))[0 if estimated.refined else 1 :]
            canonical = canonical_grid(self.plans.preprocessing)
            levels = {level: on_fixed(each, canonical) for level, each in coarser}
            uncertainty = self._uncertainty(estimated.answer, prepared, fixed_grid)
        error_voxels = None if error is None else error.percentile95_mm / float(np.cbrt(np.prod(fixed_grid.spacing)))
        return Prediction(
            fixed=fixed_grid,
            moving=moving_grid,
            displacement=displacement,
            inverse=inverse,
            warped=warped,
            quality=quality,
            refined_mm=estimated.grid.spacing if estimated.refined else None,
            trust=judge(metrics.folding_percent, error_voxels, estimated.agreement, prepared.suspicions),
            uncertainty=uncertainty,
            levels=levels,
            features=estimated.features,
            seconds=seconds,
            notices=prepared.notices,
        )

    def _inverse(
        self, estimated: EstimatedPair, field: FieldPart, frames: Frames, moving: Geometry
    ) -> NDArray[np.float32]:
        """Invert a coarse form of the field, and polish that on the moving image's grid for the field as written."""
        backward = invert_beyond_border(*_coarsened(estimated, canonical_grid(self.plans.preprocessing)))
        rough = native_displacement(*backward, frames, moving)
        tolerance = INVERSE_TOLERANCE_VOXELS * min(moving.spacing)
        polished = polish_inverse(rough, moving, field, iterations=INVERSE_ITERATIONS, tolerance_mm=tolerance)
        return rounded(polished, moving)

    def _uncertainty(self, answer: Ensemble, prepared: PreparedPair, fixed: Geometry) -> NDArray[np.float32] | None:
        """Measure the scatter of the members where it counts, in mm of the moving world: √ trace(A C Aᵀ)."""
        if answer.covariance is None:
            return None
        grid, (of_moving, of_fixed) = canonical_grid(self.plans.preprocessing), prepared.frames
        to_mm = torch.from_numpy((of_moving @ grid.affine)[:3, :3].astype(np.float32))
        variance = torch.einsum("ai,ijxyz,aj->xyz", to_mm, answer.covariance, to_mm)
        return native_map(variance.clamp(min=0.0).sqrt(), grid, of_fixed, fixed)

    def _clear_device(self) -> None:
        for network in self.networks:
            network.to("cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _coarsened(estimated: EstimatedPair, canonical: Geometry) -> tuple[Tensor, Geometry]:
    """Bring a refined field to a grid on which it is quickly inverted, well enough to be polished."""
    shape = estimated.grid.shape
    while shape != canonical.shape and math.prod(shape) > INVERSE_VOXELS:
        shape = (shape[0] // 2, shape[1] // 2, shape[2] // 2)
    spacing = [side / size for side, size in zip(canonical.extent_mm, shape, strict=True)]
    return resize(estimated.displacement, shape), Geometry.centered(shape, spacing)


def _check_options(options: RegistrationOptions, networks: int) -> None:
    steps = options.refine_steps
    if steps is not None and (type(steps) is not int or steps < 0):
        raise InputError(f"refine_steps is {steps!r} · give a whole number of at least 0, or None")
    if not set(options.mirror_axes) <= {0, 1, 2} or not set(options.extras) <= set(EXTRAS):
        raise InputError(
            f"mirror_axes is {options.mirror_axes} and extras is {options.extras} · axes are 0, 1 and 2, extras are "
            + ", ".join(EXTRAS)
        )
    if "uncertainty" in options.extras and networks == 1 and not options.mirror_axes:
        raise InputError(
            "uncertainty is how far several fields of a pair lie apart, but there is one network that sees it once · "
            "train further folds, or add --tta"
        )
