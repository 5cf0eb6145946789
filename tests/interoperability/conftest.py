"""Pairs registered by known networks, written as `biasreg_predict` writes them, over grids of all kinds."""

import functools
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from scipy import ndimage

from biasreg.core.geometry import Geometry, apply_affine
from biasreg.core.image_io import Image, read_image, write_image
from biasreg.core.points_io import Points, write_points
from biasreg.inference.export import SAVE_CHOICES, OutputFiles, write_labels, write_prediction
from biasreg.inference.prediction import Prediction
from biasreg.inference.predictor import Predictor
from biasreg.planning.plans import ChannelNormalization, PreprocessingPlans
from biasreg.spatial.native import moving_coordinates, warp_label_map
from biasreg.spatial.warp import sample

WORLD_CENTER = np.array([12.0, -25.0, 40.0])  # RAS mm, where all anatomy lies
SHIFT = np.array([6.0, -4.0, 3.0])  # RAS mm, from the fixed to the moving world
PLANS = PreprocessingPlans(
    spacing=(2.5, 2.5, 2.5),
    patch_size=(32, 30, 28),
    modality="MRI",
    normalization=(ChannelNormalization("percentile", 0.5, 99.5),),
    prealignment="affine",
    crop="anatomy",
    reference_case=None,
    label_values=(),
    label_names=(),
)

# Stands for a `Configuration`: what prediction looks at besides the networks.
CONFIGURATION: Any = SimpleNamespace(
    preprocessing=PLANS, training=SimpleNamespace(similarity="lncc", similarity_window_voxels=9)
)

FACE_MARGIN = 1e-3  # voxels from a face of the moving grid, within which rounding decides what is inside


@pytest.fixture(scope="session")
def interop_python() -> Path:
    """The Python that has the other tools: $BIASREG_INTEROP_PYTHON, or that of `make interop`."""
    named = os.environ.get("BIASREG_INTEROP_PYTHON")
    if named and not Path(named).is_file():
        pytest.fail(f"$BIASREG_INTEROP_PYTHON names {named}, which does not exist")
    python = Path(named) if named else Path(__file__).resolve().parents[2] / ".venv-interop" / "bin" / "python"
    if not python.is_file():
        pytest.skip("other tools: neither $BIASREG_INTEROP_PYTHON nor .venv-interop/bin/python; run `make interop`")
    return python


@pytest.fixture(scope="session")
def has_tool(interop_python) -> Callable[[str], bool]:
    """Tell whether a distribution, by its name as pip lists it, is beside that Python."""
    script = "import importlib.metadata as m; print(*(d.metadata['Name'] for d in m.distributions()))"
    listed = subprocess.run([interop_python, "-c", script], capture_output=True, text=True, check=True).stdout
    return {name.lower().replace("_", "-") for name in listed.split()}.__contains__


@pytest.fixture(scope="session")
def ants_python(interop_python, has_tool) -> Path:
    """The Python that has antspyx."""
    if not has_tool("antspyx"):
        pytest.skip(f"antspyx: not installed beside {interop_python}; run `make interop`")
    return interop_python


def turned(axis: tuple[float, float, float], degrees: float) -> NDArray[np.float64]:
    return np.array(sitk.VersorTransform(axis, float(np.radians(degrees))).GetMatrix()).reshape(3, 3)


def grid(axes: NDArray, shape: tuple[int, ...], spacing: tuple[float, ...], offset=(0.0, 0.0, 0.0)) -> Geometry:
    """A grid with the columns of `axes` as directions, centred near the anatomy."""
    affine = np.eye(4)
    affine[:3, :3] = axes * np.array(spacing)
    affine[:3, 3] = WORLD_CENTER + offset - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return Geometry.from_affine(affine, shape)


OBLIQUE = turned((0.3, -0.5, 0.8), 25.0)
PERMUTED = turned((0.1, 0.9, -0.2), -14.0)[:, [2, 0, 1]]
GRIDS = {
    "RAS": grid(np.eye(3), (28, 30, 26), (2.0, 2.0, 2.0)),
    "LAS": grid(np.diag([-1.0, 1.0, 1.0]), (30, 28, 26), (2.0, 2.0, 2.0)),
    "LPS": grid(np.diag([-1.0, -1.0, 1.0]), (26, 28, 30), (2.0, 2.0, 2.0)),
    "oblique": grid(OBLIQUE, (28, 30, 26), (2.0, 2.0, 2.0)),
    "left-handed": grid(OBLIQUE * (1, -1, 1), (28, 26, 30), (2.0, 2.0, 2.0), (1.0, -2.0, 1.5)),
    "anisotropic": grid(np.eye(3), (46, 38, 15), (1.2, 1.5, 4.0)),
    "anisotropic-permuted": grid(PERMUTED, (15, 44, 40), (4.0, 1.3, 1.4), (-2.0, 1.0, 2.5)),
}


@dataclass(frozen=True)
class WrittenPair:
    """A pair whose results lie on disk, with what they were made from.

    Attributes:
        files: Names of the written files.
        moving: The moving image; beside the results as `moving.nii.gz`.
        labels: Its label map; `moving_seg.nii.gz`.
        fixed: The fixed grid; the image is `fixed.nii.gz`.
        prediction: What was written.
        field: The network's field, (1, 3, X, Y, Z) in voxels of the canonical grid; zero for the shift.
        frames: Canonical mm → world RAS mm, of the fixed and of the moving image.
    """

    files: OutputFiles
    moving: Image
    labels: Image
    fixed: Geometry
    prediction: Prediction
    field: torch.Tensor
    frames: tuple[NDArray, NDArray]

    @property
    def folder(self) -> Path:
        return self.files.folder

    @property
    def padding(self) -> float:
        return float(self.moving.array.min())

    @functools.cached_property
    def positions(self) -> NDArray[np.float64]:
        """Where each fixed voxel is found in the moving grid, (X, Y, Z, 3) voxels, in float64."""
        displaced = world_points(self.fixed) + self.prediction.displacement.astype(np.float64)
        return apply_affine(np.linalg.inv(self.moving.geometry.affine), displaced)

    @functools.cached_property
    def inside(self) -> NDArray[np.bool_]:
        """Fixed voxels that are found within the moving grid's voxels, by `FACE_MARGIN` at least."""
        return within(self.positions, self.moving.geometry.shape, 0.5 - FACE_MARGIN)

    @functools.cached_property
    def between_centres(self) -> NDArray[np.bool_]:
        """Fixed voxels that are found between centres of moving voxels, where no rule for the border matters."""
        return within(self.positions, self.moving.geometry.shape, -FACE_MARGIN)

    @functools.cached_property
    def outside(self) -> NDArray[np.bool_]:
        """Fixed voxels that are found out of the moving grid's voxels, by `FACE_MARGIN` at least."""
        return ~within(self.positions, self.moving.geometry.shape, 0.5 + FACE_MARGIN)

    @functools.cached_property
    def off_ties(self) -> NDArray[np.bool_]:
        """Those inside that are not halfway between two moving voxels, where which is nearest is a matter of taste."""
        fraction = self.positions - np.floor(self.positions)
        return self.inside & (np.abs(fraction - 0.5) > FACE_MARGIN).all(axis=-1)

    @functools.cached_property
    def nearest_labels(self) -> NDArray[np.integer]:
        """The label map warped by biasreg's nearest interpolation, (X, Y, Z)."""
        volume = torch.from_numpy(self.labels.array)[None, None]
        coordinates = moving_coordinates(self.prediction.displacement, self.fixed, self.moving.geometry)
        return sample(volume, torch.from_numpy(coordinates)[None], mode="nearest", padding=0.0)[0, 0].numpy()

    def intensity_error(self, warped: NDArray) -> float:
        """Largest difference from the written warped image, relative to the moving image's range; padding must hold.

        All fixed voxels are compared but those found within `FACE_MARGIN` of the moving grid's faces.
        """
        assert self.inside.mean() > 0.6
        assert (self.inside | self.outside).mean() > 0.95
        assert (warped[self.outside] == np.float32(self.padding)).all()
        difference = np.abs(warped - read_image(self.files.path("warped")).array)[self.inside | self.outside]
        return float(difference.max() / np.ptp(self.moving.array))

    @functools.cached_property
    def fixed_points(self) -> NDArray[np.float64]:
        """(N, 3) RAS mm, all over the fixed grid."""
        voxels = np.random.default_rng(0).uniform(size=(60, 3)) * (np.array(self.fixed.shape) - 1)
        return apply_affine(self.fixed.affine, voxels)

    @functools.cached_property
    def mapped_points(self) -> NDArray[np.float64]:
        """p + d(p) of `fixed_points`, by SciPy from the field in memory."""
        voxels = apply_affine(np.linalg.inv(self.fixed.affine), self.fixed_points)
        components = np.moveaxis(self.prediction.displacement.astype(np.float64), -1, 0)
        return self.fixed_points + np.stack(
            [ndimage.map_coordinates(d, voxels.T, order=1) for d in components], axis=-1
        )

    @functools.cached_property
    def returning(self) -> NDArray[np.bool_]:
        """Moving voxels that the inverse takes into the fixed grid: those that the reported inverse error is of."""
        end = world_points(self.moving.geometry) + self.prediction.inverse
        return within(apply_affine(np.linalg.inv(self.fixed.affine), end), self.fixed.shape, 0.5 - FACE_MARGIN)


def world_points(geometry: Geometry) -> NDArray[np.float64]:
    return apply_affine(geometry.affine, np.stack(np.indices(geometry.shape), axis=-1))


def within(positions: NDArray, shape: tuple[int, int, int], reach: float) -> NDArray[np.bool_]:
    return ((positions >= -reach) & (positions <= np.array(shape) - 1 + reach)).all(axis=-1)


def smooth_noise(shape: tuple[int, ...], sigma: float, seed: int) -> NDArray[np.float64]:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma, mode="nearest")
    return noise / np.abs(noise).max()


def texture(geometry: Geometry, seed: int) -> Image:
    return Image((500 + 500 * smooth_noise(geometry.shape, 1.5, seed)).astype(np.float32), geometry)


def ball(geometry: Geometry) -> Image:
    """A ball about the world's centre, whose place can be measured."""
    distance = np.linalg.norm(world_points(geometry) - WORLD_CENTER, axis=-1)
    return Image((1000 * np.exp(-0.5 * (distance / 5.0) ** 2)).astype(np.float32), geometry)


def label_map(geometry: Geometry) -> Image:
    return Image(
        (7 * np.digitize(smooth_noise(geometry.shape, 3.0, seed=2), [-0.3, 0, 0.3])).astype(np.uint8), geometry
    )


def frames_of(kind: str) -> tuple[NDArray, NDArray]:
    """Frames of the fixed and of the moving image; those of a pre-alignment turn, scale, shear and shift."""
    fixed, moving = np.eye(4), np.eye(4)
    fixed[:3, 3] = moving[:3, 3] = WORLD_CENTER
    if kind == "shift":
        moving[:3, 3] += SHIFT
    if kind == "pre-aligned":
        fixed[:3, :3] = turned((0.2, 0.4, -0.9), 14.0) * (1.08, 0.94, 1.02)
        fixed[:3, 3] += (3.0, -2.0, 1.0)
        moving[:3, :3] = turned((-0.7, 0.1, 0.5), 11.0) @ np.array([[0.9, 0.06, 0], [0, 1.1, -0.04], [0.02, 0, 1.05]])
        moving[:3, 3] += (-2.0, 4.0, 2.0)
    return fixed, moving


def network_field(kind: str) -> torch.Tensor:
    components = np.stack([smooth_noise(PLANS.patch_size, 4.0, seed) for seed in (3, 4, 5)])
    largest = 0.0 if kind == "shift" else 2.4  # voxels, 6 mm
    return torch.from_numpy((components * largest).astype(np.float32))[None]


class KnownNetwork(torch.nn.Module):
    """Gives a known field, whatever it is shown."""

    def __init__(self, field: torch.Tensor) -> None:
        super().__init__()
        self.field = field

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(displacement=self.field, moving_logits=None, fixed_logits=None)


@dataclass(frozen=True)
class KnownFrames:
    """Stands for a `FrameSource`: the frames of the two images are known."""

    plans: PreprocessingPlans
    moving: Image
    frames: tuple[NDArray, NDArray]
    reference: None = None

    def frame(self, image: Image, shared_center: NDArray) -> NDArray:
        return self.frames[int(image is self.moving)]


def write_pair(folder: Path, names: tuple[str, str], kind: str) -> WrittenPair:
    """Register a pair of textures, or of a texture and a ball for the shift, and write all that biasreg can write."""
    fixed_grid, moving_grid = GRIDS[names[0]], GRIDS[names[1]]
    fixed, labels = texture(fixed_grid, 6), label_map(moving_grid)
    moving = ball(moving_grid) if kind == "shift" else texture(moving_grid, 1)
    field, frames = network_field(kind), frames_of(kind)
    predictor = Predictor([KnownNetwork(field)], KnownFrames(PLANS, moving, frames), CONFIGURATION, torch.device("cpu"))
    prediction = predictor.register([moving], [fixed])
    pair = WrittenPair(OutputFiles(folder, "pair"), moving, labels, fixed_grid, prediction, field, frames)
    folder.mkdir()
    for name, image in (("moving", moving), ("moving_seg", labels), ("fixed", fixed)):
        write_image(folder / f"{name}.nii.gz", image.array, image.geometry)
    returning = world_points(moving_grid)[pair.returning][::97]
    for name, points in (("fixed_points", pair.fixed_points), ("moving_points", returning)):
        write_points(folder / f"{name}.csv", Points(tuple(map(str, range(len(points)))), points))
    save = SAVE_CHOICES if names[0] == names[1] else ("h5", "jacobian")
    write_prediction(pair.files, prediction, save)
    write_labels(pair.files, warp_label_map(labels, prediction.displacement, fixed_grid), fixed_grid)
    return pair


DIFFERENT = ["RAS/LPS", "anisotropic/oblique", "left-handed/anisotropic-permuted", "anisotropic-permuted/LAS"]
GRIDS_OF_PAIRS = [*(f"{name}/{name}" for name in GRIDS), *DIFFERENT]
PAIR_NAMES = [f"{grids}/{kind}" for grids in GRIDS_OF_PAIRS for kind in ("shift", "smooth", "pre-aligned")]


@pytest.fixture(scope="session")
def pair_names() -> list[str]:
    return PAIR_NAMES


@pytest.fixture(scope="session")
def written_pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], WrittenPair]:
    """Give a pair by its name, fixed grid/moving grid/field; it is written at the first call."""
    root = tmp_path_factory.mktemp("interoperability")

    @functools.cache
    def make(name: str) -> WrittenPair:
        fixed, moving, kind = name.split("/")
        return write_pair(root / name.replace("/", "_"), (fixed, moving), kind)

    return make


@pytest.fixture(params=PAIR_NAMES)
def pair(request, written_pair) -> WrittenPair:
    return written_pair(request.param)


@pytest.fixture(params=[name for name in PAIR_NAMES if name.endswith("/shift")])
def shifted_pair(request, written_pair) -> WrittenPair:
    """A pair with d = (6, -4, 3) mm RAS everywhere, whose moving image is a ball about the world's centre."""
    return written_pair(request.param)


@pytest.fixture(params=[name for name in PAIR_NAMES if not name.endswith("/shift")])
def deformed_pair(request, written_pair) -> WrittenPair:
    return written_pair(request.param)


@pytest.fixture(params=[name for name in PAIR_NAMES if len(set(name.split("/"))) == 2])
def pair_on_one_grid(request, written_pair) -> WrittenPair:
    return written_pair(request.param)
