"""ANTs' 0GenericAffine.mat is read in the direction that ANTs means."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from biasreg.core.geometry import Geometry, apply_affine
from biasreg.core.image_io import Image, read_image, write_image
from biasreg.core.transform_io import read_linear_transform
from biasreg.inference.native import affine_displacement
from biasreg.spatial.native import warp_image

SCRIPT = Path(__file__).with_name("align_with_ants.py")
TURN = np.array([[0.96, -0.28, 0.0, 7.0], [0.28, 0.96, 0.0, -5.0], [0.0, 0.0, 1.0, 9.0], [0.0, 0.0, 0.0, 1.0]])


def draw(shape=(40, 44, 36)):
    """A lopsided head, on a grid of its own: an ellipsoid with two different spots."""
    geometry = Geometry.from_affine(np.diag([-2.0, -2.0, 2.5, 1.0]), shape)
    points = apply_affine(geometry.affine, np.moveaxis(np.indices(shape), 0, -1))
    points -= points.reshape(-1, 3).mean(axis=0)
    array = np.clip(1 - ((points / [30, 36, 38]) ** 2).sum(axis=-1), 0, None) * 100
    for center, radius, value in (((14, 10, 12), 8, 80), ((-8, -18, 4), 12, -60)):
        array += value * np.exp(-((points - center) ** 2).sum(axis=-1) / radius**2)
    return Image(array.astype(np.float32), geometry)


@pytest.mark.slow
def test_a_rigid_registration_by_ants_is_read_as_ants_means_it(ants_python, tmp_path):
    fixed = draw()
    moving = Image(fixed.array, Geometry.from_affine(TURN @ fixed.geometry.affine, fixed.geometry.shape))
    paths = [tmp_path / name for name in ("fixed.nii.gz", "moving.nii.gz", "0GenericAffine.mat", "warped.nii.gz")]
    for path, image in zip(paths, (fixed, moving), strict=False):
        write_image(path, image.array, image.geometry)
    environment = os.environ | {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
    done = subprocess.run(
        [ants_python, SCRIPT, *paths], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr

    matrix = read_linear_transform(paths[2])
    corners = fixed.geometry.corners
    error = np.linalg.norm(apply_affine(matrix, corners) - apply_affine(TURN, corners), axis=1)
    assert error.max() < 10.0  # ANTs samples at random and is up to 6 mm off; the inverse would be 40 mm off
    ours = warp_image(moving, affine_displacement(matrix, fixed.geometry), fixed.geometry)
    inner = (slice(8, -8),) * 3
    np.testing.assert_allclose(ours[inner], read_image(paths[3]).array[inner], atol=0.1)
