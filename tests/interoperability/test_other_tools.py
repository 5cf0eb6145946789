"""Each other program means by our files what biasreg means: displacement field, inverse field, `.h5`, and points.

Every program gets the same jobs (jobs.py) in the environment of `make interop`, one process for all pairs. Its images
are compared with what biasreg resamples itself, where the moving grid has voxels all around: at its border each program
has a rule of its own. What a program does otherwise is at the end of this file, and in
documentation/how-to/open-a-field-in-other-tools.md.
"""

import functools
import itertools
import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from biasreg.core.geometry import Geometry, apply_affine
from biasreg.core.image_io import Image, read_image, write_image
from biasreg.core.points_io import Points, read_points, write_points
from biasreg.core.transform_io import read_displacement, read_linear_transform
from biasreg.spatial.native import warp_image

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent
DISTRIBUTIONS = {
    "ants": "antspyx",
    "simpleitk": "simpleitk",
    "elastix": "itk-elastix",
    "greedy": "picsl-greedy",
    "plastimatch": "plastimatch",
    "nitransforms": "nitransforms",
}
TOOLS = list(DISTRIBUTIONS)
READING_H5 = ["ants", "simpleitk", "elastix", "nitransforms"]
CHAINING = ["ants", "simpleitk", "elastix", "greedy", "nitransforms"]  # take several transforms
LINEAR = ["ants", "simpleitk", "elastix", "greedy"]  # interpolate the field linearly between its voxels
WHOLE_NUMBERS = ["simpleitk", "greedy", "plastimatch", "nitransforms"]  # stay so in a warped image
GRIDS = [  # of the fixed and of the moving image, as conftest.py names them
    "RAS/RAS",
    "LAS/LAS",
    "LPS/LPS",
    "oblique/oblique",
    "left-handed/left-handed",
    "anisotropic/anisotropic",
    "anisotropic-permuted/anisotropic-permuted",
    "RAS/LPS",
    "anisotropic/oblique",
    "left-handed/anisotropic-permuted",
    "anisotropic-permuted/LAS",
]
INTENSITY_TOLERANCE = 1e-3  # of the moving image's range, a quarter of a grey level of 255
POINT_TOLERANCE_MM = 1e-3
INTEGERS = "moving_integers.nii.gz"
FACE_MARGIN = 1e-3  # voxels, within which rounding decides what is between two centres
AFFINE = sitk.AffineTransform(3)
AFFINE.Rotate(0, 1, 0.12)
AFFINE.Rotate(1, 2, -0.07)
AFFINE.Scale((1.04, 0.97, 1.02))
AFFINE.SetTranslation((-2.0, 3.0, 1.5))


class Jobs:
    """The jobs of one program for one pair, whose results lie in a folder beside those of biasreg."""

    def __init__(self, tool: str, pair) -> None:
        self.folder, self.results = pair.folder, pair.folder / tool
        fixed, moving = ({side: str(self.folder / f"{side}.nii.gz")} for side in ("fixed", "moving"))
        self.forward = {**fixed, **moving, "default": pair.padding}
        self.backward = {"fixed": moving["moving"], "moving": fixed["fixed"], "default": 0.0}
        self.list: list[dict] = []

    def output(self, name: str) -> Path:
        return self.results / name

    def add(self, kind: str, name: str, *transforms: str, **rest: object) -> None:
        paths = [str(self.folder / transform) for transform in transforms]
        self.list.append({"job": kind, "output": str(self.output(name)), "transforms": paths, **rest})

    def both(self, name: str, *transforms: str) -> None:
        self.add("image", f"{name}.nii.gz", *transforms, **self.forward)
        self.points(name, "fixed_points", *transforms)

    def points(self, name: str, points: str, *transforms: str) -> None:
        file = str(self.folder / f"{points}.csv")
        self.add("points", f"{name}_{points}.csv", *transforms, points=file, **self.forward)


def jobs_of(tool: str, pair) -> Jobs:
    jobs = Jobs(tool, pair)
    jobs.results.mkdir()
    jobs.both("warp", "pair_warp.nii.gz")
    jobs.points("warp", "fixed_centres", "pair_warp.nii.gz")
    jobs.add("image", "integers.nii.gz", "pair_warp.nii.gz", **jobs.forward | {"moving": str(pair.folder / INTEGERS)})
    jobs.add("image", "inverse.nii.gz", "pair_inverse_warp.nii.gz", **jobs.backward)
    centres = str(pair.folder / "moving_centres.csv")
    jobs.add("points", "inverse_moving_centres.csv", "pair_inverse_warp.nii.gz", points=centres, **jobs.backward)
    if tool in READING_H5:
        jobs.both("h5", "pair_warp.h5")
        jobs.points("h5", "fixed_centres", "pair_warp.h5")
    if tool in CHAINING:
        jobs.both("field-then-affine", "pair_warp.nii.gz", "affine.tfm")
        jobs.points("field-then-affine", "fixed_centres", "pair_warp.nii.gz", "affine.tfm")
        jobs.both("affine-then-field", "affine.tfm", "pair_warp.nii.gz")
    if tool == "greedy":
        jobs.add("image", "h5.nii.gz", "pair_warp.h5", **jobs.forward)
    if tool == "plastimatch":
        jobs.add("compose", "composed.nii.gz", "pair_warp.nii.gz", "pair_warp.nii.gz")
    return jobs


def some_centres(geometry: Geometry) -> np.ndarray:
    """(60, 3) RAS mm, centres of voxels all over the grid."""
    voxels = np.random.default_rng(1).integers(0, geometry.shape, size=(60, 3))
    return apply_affine(geometry.affine, voxels)


def integers_of(image: Image) -> np.ndarray:
    """The image in grey levels from 0 to 255, the smallest value being 0 as in most images."""
    low = image.array.min()
    return np.rint((image.array - low) * (255 / (image.array.max() - low))).astype(np.uint8)


def write_inputs(pair) -> None:
    write_image(pair.folder / INTEGERS, integers_of(pair.moving), pair.moving.geometry)
    sitk.WriteTransform(AFFINE, str(pair.folder / "affine.tfm"))
    for name, grid in (("fixed_centres", pair.fixed), ("moving_centres", pair.moving.geometry)):
        centres = some_centres(grid)
        write_points(pair.folder / f"{name}.csv", Points(tuple(map(str, range(len(centres)))), centres))


@pytest.fixture(scope="module")
def run_tool(interop_python, has_tool, written_pair, tmp_path_factory):
    """Have one program do all its jobs, once."""
    pairs = [written_pair(f"{grids}/{kind}") for grids in GRIDS for kind in ("shift", "pre-aligned")]
    for pair in pairs:
        write_inputs(pair)

    @functools.cache
    def run(tool: str) -> None:
        file = tmp_path_factory.mktemp(tool) / "jobs.json"
        file.write_text(json.dumps([job for pair in pairs for job in jobs_of(tool, pair).list]), encoding="utf-8")
        environment = {**os.environ, "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
        command = [interop_python, FOLDER / f"apply_with_{tool}.py", file]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    def run_if_installed(tool: str) -> None:
        if not has_tool(DISTRIBUTIONS[tool]):
            pytest.skip(f"{tool}: {DISTRIBUTIONS[tool]} is not installed beside {interop_python}; run `make interop`")
        run(tool)

    return run_if_installed


@pytest.fixture
def tool(request, run_tool) -> str:
    run_tool(request.param)
    return request.param


@pytest.fixture
def pair(request, written_pair):
    return written_pair(request.param)


def on_all_grids(tools: Iterable[str], kind: str = "pre-aligned") -> pytest.MarkDecorator:
    """Run a test for each program and pair of grids; its id is tool-fixed/moving."""
    cases = list(itertools.product(tools, GRIDS))
    values = [(tool, f"{grids}/{kind}") for tool, grids in cases]
    return pytest.mark.parametrize(("tool", "pair"), values, indirect=True, ids=map("-".join, cases))


def on_all_grids_through(tools: Iterable[tuple[str, str]]) -> pytest.MarkDecorator:
    """Run a test for each program, its transforms, and pair of grids; its id is tool-fixed/moving-transforms."""
    cases = [(tool, grids, transforms) for (tool, transforms), grids in itertools.product(tools, GRIDS)]
    values = [(tool, f"{grids}/pre-aligned", transforms) for tool, grids, transforms in cases]
    names, ids = ("tool", "pair", "transforms"), map("-".join, cases)
    return pytest.mark.parametrize(names, values, indirect=["tool", "pair"], ids=ids)


def interpolate(displacement: np.ndarray, geometry: Geometry, points: np.ndarray) -> np.ndarray:
    """d at points (..., 3) RAS mm, linearly, by SciPy."""
    voxels = np.moveaxis(apply_affine(np.linalg.inv(geometry.affine), points), -1, 0)
    components = np.moveaxis(displacement.astype(np.float64), -1, 0)
    return np.stack([ndimage.map_coordinates(d, voxels, order=1, mode="nearest") for d in components], axis=-1)


def within(points: np.ndarray, geometry: Geometry, reach: float) -> np.ndarray:
    """Whether points lie between the outermost centres of voxels, or at most `reach` voxels beyond them."""
    voxels = apply_affine(np.linalg.inv(geometry.affine), points)
    return ((voxels >= -reach) & (voxels <= np.array(geometry.shape) - 1 + reach)).all(axis=-1)


def expected_points(pair, transforms: str, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where points of the fixed world, (..., 3) RAS mm, are found, and whether the field is asked within its grid."""
    affine = read_linear_transform(pair.folder / "affine.tfm")
    before = apply_affine(affine, points) if transforms == "affine-then-field" else points
    after = before + interpolate(pair.prediction.displacement, pair.fixed, before)
    end = apply_affine(affine, after) if transforms == "field-then-affine" else after
    return end, within(before, pair.fixed, 1e-6)


def grid_points(geometry: Geometry) -> np.ndarray:
    return apply_affine(geometry.affine, np.stack(np.indices(geometry.shape), axis=-1))


def points_of(pair, name: str) -> np.ndarray:
    return read_points(pair.folder / name).coordinates


def check_image(record_property, path: Path, expected: np.ndarray, compared: np.ndarray, moving: Image) -> None:
    warped = read_image(path)
    assert compared.mean() > 0.35
    difference = np.abs(warped.array - expected)[compared].max() / np.ptp(moving.array)
    record_property("largest_difference_of_range", f"{difference:.2g}")
    assert difference < INTENSITY_TOLERANCE


def check_points(record_property, found: np.ndarray, expected: np.ndarray) -> None:
    assert len(found) > 30
    difference = np.linalg.norm(found - expected, axis=-1).max()
    record_property("largest_difference_mm", f"{difference:.2g}")
    assert difference < POINT_TOLERANCE_MM


@on_all_grids(TOOLS, "shift")
def test_a_positive_shift_finds_a_fixed_point_right_back_and_up_in_the_moving_image(tool, pair):
    """In numbers written by hand, with no code of biasreg between: RAS (6, -4, 3) is LPS (-6, 4, 3)."""
    read = functools.partial(np.loadtxt, delimiter=",", skiprows=1, usecols=(0, 1, 2))
    jobs = Jobs(tool, pair)
    before, after = read(pair.folder / "fixed_centres.csv"), read(jobs.output("warp_fixed_centres.csv"))
    np.testing.assert_allclose(after - before, np.broadcast_to([-6.0, 4.0, 3.0], before.shape), atol=POINT_TOLERANCE_MM)
    warped = sitk.ReadImage(str(jobs.output("warp.nii.gz")))
    weights = sitk.GetArrayFromImage(warped).T.astype(np.float64).ravel()
    places = np.stack([warped.TransformIndexToPhysicalPoint(index) for index in np.ndindex(*warped.GetSize())])
    ball = weights @ places / weights.sum()
    np.testing.assert_allclose(ball, [-12.0 + 6.0, 25.0 - 4.0, 40.0 - 3.0], atol=0.1)


IMAGES = [
    *((tool, "warp") for tool in TOOLS),
    *((tool, "h5") for tool in READING_H5),
    *((tool, "field-then-affine") for tool in CHAINING),
    *((tool, "affine-then-field") for tool in LINEAR),
]
CENTRES = [(tool, transforms) for tool, transforms in IMAGES if transforms != "affine-then-field"]
BETWEEN = [(tool, transforms) for tool, transforms in IMAGES if tool in LINEAR]


@on_all_grids_through(IMAGES)
def test_an_image_is_warped_as_biasreg_warps_it(tool, pair, transforms, record_property):
    start = grid_points(pair.fixed)
    end, known = expected_points(pair, transforms, start)
    expected = warp_image(pair.moving, end - start, pair.fixed)
    if transforms in ("warp", "h5"):
        np.testing.assert_allclose(expected, read_image(pair.files.path("warped")).array, atol=1e-2)
    compared = known & within(end, pair.moving.geometry, -FACE_MARGIN)
    path = Jobs(tool, pair).output(f"{transforms}.nii.gz")
    check_image(record_property, path, expected, compared, pair.moving)


@on_all_grids(TOOLS)
def test_an_image_of_grey_levels_agrees_within_one_of_them(tool, pair):
    """Some programs keep the moving image's type, and round or cut off what they interpolate."""
    grey_levels = Image(integers_of(pair.moving), pair.moving.geometry)
    expected = warp_image(grey_levels, pair.prediction.displacement, pair.fixed)
    difference = np.abs(read_image(Jobs(tool, pair).output("integers.nii.gz")).array - expected)[pair.between_centres]
    assert difference.max() < (1.01 if tool in WHOLE_NUMBERS else 0.255)


@on_all_grids(TOOLS)
def test_the_inverse_field_brings_the_fixed_image_onto_the_moving_grid(tool, pair, record_property):
    fixed = read_image(pair.folder / "fixed.nii.gz")
    expected = warp_image(fixed, pair.prediction.inverse, pair.moving.geometry)
    end = grid_points(pair.moving.geometry) + pair.prediction.inverse
    path = Jobs(tool, pair).output("inverse.nii.gz")
    check_image(record_property, path, expected, within(end, pair.fixed, -FACE_MARGIN), fixed)


@on_all_grids(TOOLS)
def test_the_inverse_field_maps_moving_points_to_q_plus_its_displacement(tool, pair, record_property):
    before = points_of(pair, "moving_centres.csv")
    expected = before + interpolate(pair.prediction.inverse, pair.moving.geometry, before)
    after = points_of(pair, f"{tool}/inverse_moving_centres.csv")
    check_points(record_property, after, expected)


@on_all_grids_through(CENTRES)
def test_centres_of_voxels_are_mapped_to_p_plus_d(tool, pair, transforms, record_property):
    expected, _ = expected_points(pair, transforms, points_of(pair, "fixed_centres.csv"))
    after = points_of(pair, f"{tool}/{transforms}_fixed_centres.csv")
    check_points(record_property, after, expected)


@on_all_grids_through(BETWEEN)
def test_points_between_voxels_are_mapped_to_p_plus_d(tool, pair, transforms, record_property):
    expected, known = expected_points(pair, transforms, pair.fixed_points)
    after = points_of(pair, f"{tool}/{transforms}_fixed_points.csv")
    check_points(record_property, after[known], expected[known])


# What a program does otherwise, as the how-to says. If one of these fails, the program has changed: change the how-to.


@on_all_grids(["plastimatch"])
def test_points_between_voxels_get_the_displacement_of_the_nearest_one(tool, pair):
    """Up to half a voxel's change of the field away from p + d(p)."""
    nearest = np.rint(apply_affine(np.linalg.inv(pair.fixed.affine), pair.fixed_points)).astype(int)
    displaced = pair.fixed_points + pair.prediction.displacement[tuple(nearest.T)]
    after = points_of(pair, f"{tool}/warp_fixed_points.csv")
    np.testing.assert_allclose(after, displaced, atol=POINT_TOLERANCE_MM)
    assert np.linalg.norm(after - pair.mapped_points, axis=-1).max() > 0.2


@on_all_grids(["nitransforms"])
def test_points_between_voxels_go_through_cubic_splines_that_are_off_near_the_border(tool, pair):
    after = points_of(pair, f"{tool}/warp_fixed_points.csv")
    distance = np.linalg.norm(after - pair.mapped_points, axis=-1)
    voxels = apply_affine(np.linalg.inv(pair.fixed.affine), pair.fixed_points)
    depth = np.minimum(voxels, np.array(pair.fixed.shape) - 1 - voxels).min(axis=-1)
    assert distance[depth > 4].max() < 0.05
    assert 0.1 < distance.max() < 1.0


@on_all_grids(["greedy"])
def test_an_h5_is_misread_in_silence(tool, pair):
    misread = read_image(Jobs(tool, pair).output("h5.nii.gz")).array
    difference = np.abs(misread - read_image(pair.files.path("warped")).array)[pair.between_centres]
    assert difference.max() > 0.1 * np.ptp(pair.moving.array)


@pytest.mark.parametrize("tool", ["plastimatch"], indirect=True)
def test_an_h5_is_refused(tool, interop_python, written_pair):
    folder = written_pair("RAS/LPS/pre-aligned").folder
    images = ("--input", "moving.nii.gz", "--fixed", "fixed.nii.gz", "--output-img", "refused.nii.gz")
    command = [interop_python.with_name(tool), "convert", *images, "--xf", "pair_warp.h5"]
    assert subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode != 0
    assert not (folder / "refused.nii.gz").exists()


@on_all_grids(["plastimatch"])
def test_composing_fields_forgets_the_directions_of_the_grid(tool, pair):
    """The displacements are right voxel by voxel, so that the file is right on LPS grids alone."""
    composed, geometry = read_displacement(Jobs(tool, pair).output("composed.nii.gz"))
    start = grid_points(pair.fixed)
    middle = start + pair.prediction.displacement
    end = middle + interpolate(pair.prediction.displacement, pair.fixed, middle)
    inside = within(middle, pair.fixed, -FACE_MARGIN)
    np.testing.assert_allclose((start + composed)[inside], end[inside], atol=POINT_TOLERANCE_MM)
    assert np.array_equal(geometry.direction, np.diag([-1.0, -1.0, 1.0]))
