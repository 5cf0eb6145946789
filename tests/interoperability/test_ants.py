"""ANTs applies what biasreg writes as biasreg does; it runs in an environment of its own (`make interop`)."""

import json
import os
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest

from biasreg.core.image_io import read_image, read_labels
from biasreg.core.points_io import read_points
from biasreg.core.transform_io import read_displacement

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("apply_with_ants.py")
INTENSITY_TOLERANCE = 1e-3  # of the moving image's range
POINT_TOLERANCE_MM = 1e-3
JACOBIAN_TOLERANCE = 0.02  # ANTs and biasreg take differences of different order
LPS = np.array([-1.0, -1.0, 1.0])


def jobs_for(pair) -> list[dict]:
    def path(name: str) -> str:
        return str(pair.folder / name)

    warp, inverse, composite = (path(f"pair_{name}") for name in ("warp.nii.gz", "inverse_warp.nii.gz", "warp.h5"))
    image = {"fixed": path("fixed.nii.gz"), "moving": path("moving.nii.gz"), "default": pair.padding}
    labels = {"fixed": path("fixed.nii.gz"), "moving": path("moving_seg.nii.gz"), "default": 0}
    fixed_points, moving_points = path("fixed_points.csv"), path("moving_points.csv")

    def job(kind: str, output: str, *transforms: str, **rest: object) -> dict:
        return {"job": kind, "output": path(output), "transforms": transforms, **rest}

    return [
        job("image", "ants_warp.nii.gz", warp, interpolator="linear", **image),
        job("image", "ants_h5.nii.gz", composite, interpolator="linear", **image),
        job("image", "ants_nearest.nii.gz", warp, interpolator="nearestNeighbor", **labels),
        job("image", "ants_votes.nii.gz", warp, interpolator="genericLabel", **labels),
        job("points", "ants_warp.csv", warp, points=fixed_points),
        job("points", "ants_h5.csv", composite, points=fixed_points),
        job("points", "ants_returned.csv", inverse, warp, points=moving_points),
        job("compose", "ants_field.nii.gz", warp, fixed=path("fixed.nii.gz")),
        job("jacobian", "ants_jacobian.nii.gz", warp, fixed=path("fixed.nii.gz")),
    ]


@pytest.fixture(scope="module", autouse=True)
def ants_results(ants_python, pair_names, written_pair, tmp_path_factory) -> None:
    """Run ANTs once for all pairs; its results lie beside those of biasreg."""
    jobs = [job for name in pair_names for job in jobs_for(written_pair(name))]
    file = tmp_path_factory.mktemp("ants") / "jobs.json"
    file.write_text(json.dumps(jobs), encoding="utf-8")
    environment = {**os.environ, "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
    result = subprocess.run([ants_python, SCRIPT, file], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr


SOURCES = [pytest.param("warp", id="warp.nii.gz"), pytest.param("h5", id="warp.h5")]


@pytest.mark.parametrize("source", SOURCES)
def test_a_positive_shift_finds_a_fixed_point_right_back_and_up_in_the_moving_image(source, shifted_pair):
    before = np.loadtxt(shifted_pair.folder / "fixed_points.csv", delimiter=",", skiprows=1, usecols=(0, 1, 2))
    after = np.loadtxt(shifted_pair.folder / f"ants_{source}.csv", delimiter=",", skiprows=1, usecols=(0, 1, 2))
    shift = np.broadcast_to([-6.0, 4.0, 3.0], before.shape)  # (6, -4, 3) in RAS
    np.testing.assert_allclose(after - before, shift, atol=POINT_TOLERANCE_MM)
    warped = nibabel.load(shifted_pair.folder / f"ants_{source}.nii.gz")
    weights = warped.get_fdata().ravel()
    voxels = np.indices(warped.shape).reshape(3, -1)
    ball = (warped.affine[:3, :3] @ voxels + warped.affine[:3, 3:]) @ weights / weights.sum()
    np.testing.assert_allclose(ball, np.array([12.0, -25.0, 40.0]) - [6.0, -4.0, 3.0], atol=0.1)


@pytest.mark.parametrize("source", SOURCES)
def test_an_image_is_warped_as_written(source, pair):
    warped = read_image(pair.folder / f"ants_{source}.nii.gz")
    assert warped.geometry.is_close(pair.fixed)
    assert pair.intensity_error(warped.array) < INTENSITY_TOLERANCE


@pytest.mark.parametrize("source", SOURCES)
def test_points_are_mapped_to_p_plus_d(source, pair):
    """ANTs maps points from fixed to moving with the file that brings the moving image to the fixed one."""
    mapped = read_points(pair.folder / f"ants_{source}.csv").coordinates
    np.testing.assert_allclose(mapped, pair.mapped_points, atol=POINT_TOLERANCE_MM)


def test_labels_are_warped_as_written_by_linear_votes(deformed_pair):
    pair = deformed_pair
    warped = nibabel.load(pair.folder / "ants_votes.nii.gz").get_fdata()
    written = read_labels(pair.files.path("warped_seg")).array
    np.testing.assert_array_equal(warped[pair.inside], written[pair.inside])
    assert not warped[pair.outside].any()


def test_labels_of_the_nearest_voxel_agree(deformed_pair):
    pair = deformed_pair
    warped = nibabel.load(pair.folder / "ants_nearest.nii.gz").get_fdata()
    assert pair.off_ties.mean() > 0.6
    np.testing.assert_array_equal(warped[pair.off_ties], pair.nearest_labels[pair.off_ties])


def test_the_written_inverse_undoes_the_field_within_the_reported_error(pair):
    before = read_points(pair.folder / "moving_points.csv").coordinates
    after = read_points(pair.folder / "ants_returned.csv").coordinates
    assert len(before) > 40
    distance = np.linalg.norm(after - before, axis=-1)
    assert distance.max() <= pair.prediction.quality.inverse_error.max_mm + POINT_TOLERANCE_MM
    assert distance.mean() < 0.02


def test_a_field_that_ants_writes_is_read_back(pair):
    displacement, geometry = read_displacement(pair.folder / "ants_field.nii.gz")
    assert geometry.is_close(pair.fixed)
    np.testing.assert_allclose(displacement, pair.prediction.displacement, atol=POINT_TOLERANCE_MM)


def test_the_jacobian_determinant_agrees_off_the_border(pair):
    inner = (slice(2, -2),) * 3
    written = read_image(pair.files.path("jacobian")).array[inner]
    other = read_image(pair.folder / "ants_jacobian.nii.gz").array[inner]
    np.testing.assert_allclose(written, other, atol=JACOBIAN_TOLERANCE)
