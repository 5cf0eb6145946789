"""What ANTs has registered is applied by biasreg as by antsApplyTransforms, in ANTs' order, to images and points."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from scipy import ndimage

from biasreg.core.geometry import Geometry, apply_affine
from biasreg.core.image_io import read_image, read_labels, write_image
from biasreg.core.points_io import Points, read_points, write_points
from biasreg.core.transforms import TransformFile
from biasreg.inference.apply_files import ApplyRequest, apply_files

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("apply_chains_with_ants.py")
ROTATION = np.array(SimpleITK.VersorTransform([0.3, -0.5, 0.8], 0.35).GetMatrix()).reshape(3, 3)


def grid(axes, spacing, shape, shift) -> Geometry:
    affine = np.eye(4)
    affine[:3, :3] = axes * np.array(spacing)
    affine[:3, 3] = np.array(shift) - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return Geometry.from_affine(affine, shape)


FIXED = grid(ROTATION, (2.0, 2.0, 2.5), (36, 38, 30), (5.0, 8.0, -4.0))
MOVING = grid(np.diag([-1.0, 1.0, 1.0]), (2.5, 2.0, 2.0), (32, 40, 38), (0.0, 0.0, 0.0))


def anatomy(geometry: Geometry, shift, scale: float) -> np.ndarray:
    """A few balls of different size and brightness in the world."""
    world = (apply_affine(geometry.affine, np.stack(np.indices(geometry.shape), axis=-1)) - shift) / scale
    image = np.zeros(geometry.shape)
    for number, center in enumerate([(0, 0, 0), (12, 5, -8), (-10, 9, 6), (3, -14, 9)]):
        distance = np.linalg.norm(world - center, axis=-1)
        image += (300 + 150 * number) / (1 + np.exp(distance - (20 - 3.5 * number)))
    return image.astype(np.float32)


@pytest.fixture(scope="module")
def folder(ants_python, tmp_path_factory) -> Path:
    """A pair that ANTs has registered, with all that it made of it."""
    path = tmp_path_factory.mktemp("chains")
    write_image(path / "fixed.nii.gz", anatomy(FIXED, (4.0, 6.0, -3.0), 1.0), FIXED)
    moving = anatomy(MOVING, (-2.0, 1.0, 2.0), 1.12)
    write_image(path / "moving.nii.gz", moving, MOVING)
    write_image(path / "moving_seg.nii.gz", np.digitize(moving, [100, 400, 700]).astype(np.uint8), MOVING)
    voxels = np.random.default_rng(0).uniform(8, 22, size=(50, 3))
    write_points(path / "points.csv", Points(tuple(map(str, range(50))), apply_affine(FIXED.affine, voxels)))
    environment = {**os.environ, "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
    result = subprocess.run([ants_python, SCRIPT, path], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return path


def chain(folder: Path, *files: tuple[str, bool]) -> tuple[TransformFile, ...]:
    return tuple(TransformFile(folder / name, inverted) for name, inverted in files)


WARP, MATRIX, BACK = "ants_1Warp.nii.gz", "ants_0GenericAffine.mat", "ants_1InverseWarp.nii.gz"
CHAINS = {
    "forward": ((WARP, False), (MATRIX, False)),
    "swapped": ((MATRIX, False), (WARP, False)),
    "inverse": ((MATRIX, True), (BACK, False)),
    "composite": (("composite_Composite.h5", False),),
}


def inner(array: np.ndarray) -> np.ndarray:
    """Away from the faces, where ANTs displaces nothing beyond a field and biasreg keeps its border value."""
    return array[tuple(slice(size // 4, -(size // 4)) for size in array.shape)]


@pytest.mark.parametrize("name", CHAINS)
def test_images_are_those_of_ants_within_a_grey_level(name, folder):
    source, reference = ("fixed", "moving") if name == "inverse" else ("moving", "fixed")
    output = folder / f"ours_{name}.nii.gz"
    apply_files(
        ApplyRequest(
            chain(folder, *CHAINS[name]), (folder / f"{source}.nii.gz",), (output,), folder / f"{reference}.nii.gz"
        )
    )
    ours, theirs = read_image(output), read_image(folder / f"{name}.nii.gz")
    assert ours.geometry.is_close(theirs.geometry)
    assert np.ptp(theirs.array) > 500
    assert np.abs(inner(ours.array) - inner(theirs.array)).max() < 1


@pytest.mark.parametrize("name", CHAINS)
def test_points_are_those_of_ants(name, folder):
    output = folder / f"ours_{name}.csv"
    apply_files(ApplyRequest(chain(folder, *CHAINS[name]), (folder / "points.csv",), (output,)))
    before, ours, theirs = (
        read_points(path).coordinates for path in (folder / "points.csv", output, folder / f"{name}.csv")
    )
    assert np.linalg.norm(theirs - before, axis=1).mean() > 2
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_the_order_matters_in_this_pair(folder):
    first, second = (read_points(folder / f"{name}.csv").coordinates for name in ("forward", "swapped"))
    assert np.linalg.norm(first - second, axis=1).max() > 0.1


def test_labels_are_those_of_ants_generic_labels(folder):
    output = folder / "ours_labels.nii.gz"
    apply_files(
        ApplyRequest(
            chain(folder, *CHAINS["forward"]),
            *((folder / "moving_seg.nii.gz",), (output,), folder / "fixed.nii.gz"),
            interpolation="label",
        )
    )
    ours, theirs = read_labels(output).array, read_labels(folder / "labels.nii.gz").array
    assert (inner(ours) != inner(theirs)).mean() < 1e-3
    assert len(np.unique(theirs)) == 4


def test_a_forward_field_of_ants_is_inverted_to_its_own_inverse(folder):
    """ANTs' inverse warp and matrix against the numerical inverse of the forward pair."""
    outputs = folder / "numerical.csv", folder / "written.csv"
    forward = tuple(reversed([(name, True) for name, _ in CHAINS["forward"]]))
    for output, files in zip(outputs, (forward, CHAINS["inverse"]), strict=True):
        apply_files(ApplyRequest(chain(folder, *files), (folder / "forward.csv",), (output,)))
    start = read_points(folder / "points.csv").coordinates
    numerical, written = (np.linalg.norm(read_points(path).coordinates - start, axis=1) for path in outputs)
    assert numerical.max() < 2e-3
    assert ndimage.mean(written) < 0.5
