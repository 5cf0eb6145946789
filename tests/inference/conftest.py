"""Trained models whose networks give a known displacement, and pairs that show the same anatomy at two places."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from biasreg.core.geometry import Geometry, apply_affine
from biasreg.core.image_io import Image, write_image
from biasreg.core.serialization import write_record
from biasreg.network.biasnet import BIASNet
from biasreg.network.build import build_network
from biasreg.network.checkpoint import Identity, RunSettings, capture, save_checkpoint
from biasreg.planning.plans import (
    PLANS_SCHEMA_VERSION,
    AugmentationPlans,
    ChannelNormalization,
    Configuration,
    EncoderPlans,
    LossWeights,
    NetworkPlans,
    Plans,
    PreprocessingPlans,
    TrainingPlans,
)

SPACING = (2.0, 2.5, 3.0)
SHAPE = (24, 20, 16)
RADII = np.array([18.0, 15.0, 16.0])  # fills more of its grid than an image whose background is no foreground must


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def configuration() -> Configuration:
    return Configuration(
        preprocessing=PreprocessingPlans(
            spacing=SPACING,
            patch_size=SHAPE,
            modality="MRI",
            normalization=(ChannelNormalization("percentile", 0.5, 99.5),),
            prealignment="center",
            crop="anatomy",
            reference_case=None,
            label_values=(3, 7),
            label_names=("shell", "core"),
        ),
        network=NetworkPlans(
            in_channels=1,
            num_labels=3,
            encoder=EncoderPlans("residual", "scratch", "full", None, 4, (1,), (1,), 2, ((2, 2, 2),) * 2),
            decoder_channels=(4, 4, 4),
            registration_levels=2,
            segmentation_level=0,
            integration_steps=0,
            correlation_levels=(),
            streams="both",
            biaf=True,
            mac=True,
            checkpointing=False,
        ),
        training=TrainingPlans(
            epochs=1,
            iterations_per_epoch=1,
            batch_size=1,
            learning_rate=1e-3,
            learning_rate_power=0.9,
            learning_rate_warmup=0.0,
            gradient_clip=12.0,
            averaging_decay=0.9,
            similarity="lncc",
            similarity_window_voxels=5,
            weights=LossWeights(1.0, 1.0, 1.0, 1.0, 1.0),
            consistency_warmup=0.1,
            consistency_interval=1,
            labels_per_step=2,
            augmentation=AugmentationPlans(10.0, 0.1, 2.0, 0.02, 1.0, 0.5),
            validation_pairs=1,
        ),
    )


@pytest.fixture
def two_channels(configuration: Configuration) -> Configuration:
    plans = configuration.preprocessing
    return replace(
        configuration,
        preprocessing=replace(plans, normalization=plans.normalization * 2),
        network=replace(configuration.network, in_channels=2),
    )


def shifting_network(configuration: Configuration, voxels: Sequence[float] = (0, 0, 0)) -> BIASNet:
    """Build a BIASNet that displaces every voxel of the canonical grid alike, whatever it is shown."""
    network = build_network(configuration.network)
    with torch.no_grad():
        for level in network.registration.levels:
            level.residual.weight.zero_()
            level.residual.bias.zero_()
        network.registration.levels[0].residual.bias.copy_(torch.tensor(voxels))
    return network


@pytest.fixture
def make_network() -> Callable[..., BIASNet]:
    return shifting_network


@pytest.fixture
def write_model(tmp_path: Path, configuration: Configuration) -> Callable[..., Path]:
    """Return a function that writes a trained model and returns its folder."""

    def write(
        changed: Configuration = configuration,
        *,
        dataset: str = "Dataset901_Blobs",
        plans_name: str = "tiny",
        name: str = "main",
        folds: Sequence[str] = ("0",),
        files: Sequence[str] = ("checkpoint_best.pth",),
        shift: Sequence[float] = (0, 0, 0),
        reference_hash: str | None = None,
    ) -> Path:
        folder = tmp_path / "results" / dataset / f"{plans_name}__{name}"
        plans = Plans(
            PLANS_SCHEMA_VERSION, plans_name, dataset, "0", "cpu", 1.0, "inter-subject", name, {name: changed}, {}
        )
        write_record(folder / "plans.json", plans)
        for fold in folds:
            run = RunSettings("all" if fold == "all" else int(fold), 1, 1, 0, "cases")
            identity = Identity(dataset, plans_name, name, changed, reference_hash, run)
            progress = {"history": [{"epoch": 1}], "best": {"epoch": 1}}
            checkpoint = capture(identity, progress, shifting_network(changed, shift), None)
            for file in files:
                save_checkpoint(folder / f"fold_{fold}" / file, checkpoint)
        return folder

    return write


def draw(geometry: Geometry, center: Sequence[float]) -> tuple[Image, Image]:
    """Image an ellipsoid (shell 3, with an off-centre core 7) around a world point, and its labels."""
    points = apply_affine(geometry.affine, np.moveaxis(np.indices(geometry.shape), 0, -1)) - np.array(center)
    inside = ((points / RADII) ** 2).sum(-1) < 1
    core = np.linalg.norm(points - [6.0, -3.0, 4.0], axis=-1) < 7
    labels = np.where(core, 7, np.where(inside, 3, 0)).astype(np.uint8)
    smooth = np.clip(1.2 - np.sqrt(((points / RADII) ** 2).sum(-1)), 0, None)
    texture = np.prod(np.sin(points / [4.0, 5.0, 4.5] + 1), axis=-1)
    array = np.where(labels > 0, 200 + 200 * smooth + 150 * texture + 300 * core, 0).astype(np.float32)
    return Image(array, geometry), Image(labels, geometry)


@pytest.fixture
def draw_anatomy() -> Callable[..., tuple[Image, Image]]:
    return draw


def turned(directions: Sequence[Sequence[float]], spacing: Sequence[float], center: Sequence[float]) -> Geometry:
    """Make a grid of about 60 mm around a world point; row a of `directions` is where array axis a points."""
    matrix = np.array(directions, dtype=float).T * np.array(spacing)
    shape = [int(np.ceil(60 / step)) for step in spacing]
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = np.array(center) - matrix @ (np.array(shape) - 1) / 2
    return Geometry.from_affine(affine, shape)


COSINE, SINE = np.cos(0.3), np.sin(0.3)
ORIENTATIONS = {
    "RAS": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "LPS": [[-1, 0, 0], [0, -1, 0], [0, 0, 1]],
    "LAS": [[-1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "SRP": [[0, 0, 1], [1, 0, 0], [0, -1, 0]],
    "oblique": [[COSINE, SINE, 0], [-SINE, COSINE, 0], [0, 0, -1]],
}


@pytest.fixture
def make_grid() -> Callable[..., Geometry]:
    """Return a maker of grids by orientation, spacing and centre."""

    def make(orientation: str = "RAS", spacing=(2.0, 2.0, 2.0), center=(0.0, 0.0, 0.0)) -> Geometry:
        return turned(ORIENTATIONS[orientation], spacing, center)

    return make


@pytest.fixture
def write_pair(make_grid) -> Callable[..., None]:
    """Return a function that writes a pair into a flat folder: the same anatomy, 7 mm further along x when moving."""

    def write(folder: Path, name: str, *, channels: int = 1, labels: bool = True) -> None:
        grids = {"moving": make_grid("LPS", (2.0, 2.5, 3.0), (30, 0, 5)), "fixed": make_grid(center=(20, 1, 4))}
        for role, center in (("moving", (27.0, 0.0, 5.0)), ("fixed", (20.0, 0.0, 5.0))):
            image, label_map = draw(grids[role], center)
            for channel in range(channels):
                suffix = f"_{channel:04d}" if channels > 1 else ""
                write_image(folder / f"{name}_{role}{suffix}.nii.gz", image.array, image.geometry)
            if labels:
                write_image(folder / f"{name}_{role}_seg.nii.gz", label_map.array, label_map.geometry)

    return write
