"""A user's own linear transform in place of biasreg's pre-alignment."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK
import torch

from biasreg.core.geometry import Geometry, apply_affine, ras_to_lps
from biasreg.core.image_io import Image, read_image
from biasreg.core.serialization import file_hash, read_record
from biasreg.core.transform_io import read_displacement, read_linear_transform
from biasreg.evaluation.metrics import dice_per_label
from biasreg.inference.models import ModelRequest, find_model
from biasreg.inference.predict import PredictOptions, predict_pairs
from biasreg.inference.predictor import Predictor
from biasreg.inference.record import PredictionRecord
from biasreg.preprocessing.frames import FrameSource
from biasreg.preprocessing.prealign import foreground_center
from biasreg.spatial.native import warp_label_map

CPU = torch.device("cpu")


def euler(angles=(0.15, -0.1, 0.3), shift=(9.0, -6.0, 4.0), center=(3.0, 1.0, -2.0)):
    """A rigid transform that is far from its own inverse, from fixed LPS points to moving ones."""
    transform = SimpleITK.Euler3DTransform()
    transform.SetRotation(*angles)
    transform.SetTranslation(shift)
    transform.SetCenter(center)
    return transform


@pytest.fixture
def write(tmp_path):
    def write(transform, ending=".tfm"):
        path = tmp_path / f"given{ending}"
        SimpleITK.WriteTransform(transform, str(path))
        return path

    return write


@pytest.fixture
def make_predictor(configuration, make_network):
    """Return a maker of predictors whose network displaces every voxel alike."""

    def make(prealignment="center", shift=(0.0, 0.0, 0.0)):
        plans = replace(configuration.preprocessing, prealignment=prealignment)
        return Predictor([make_network(configuration, shift)], FrameSource(plans), configuration, CPU)

    return make


def carried(image, matrix):
    """The same voxels at another place of the world: what lay at p then lies at matrix p."""
    return Image(image.array, Geometry.from_affine(matrix @ image.geometry.affine, image.geometry.shape))


@pytest.mark.parametrize(
    ("orientation", "prealignment"), [("RAS", "none"), ("RAS", "center"), ("LPS", "center"), ("oblique", "center")]
)
def test_the_field_is_the_given_transform_where_the_network_adds_nothing(
    orientation, prealignment, make_predictor, make_grid, draw_anatomy, write
):
    matrix = read_linear_transform(write(euler()))
    fixed, fixed_labels = draw_anatomy(make_grid(orientation, (2.0, 2.5, 3.0)), (2, -1, 0))
    moving, moving_labels = (carried(image, matrix) for image in draw_anatomy(make_grid("RAS"), (2, -1, 0)))
    predictor = make_predictor(prealignment)
    result = predictor.register([moving], [fixed], matrix)

    points = apply_affine(fixed.geometry.affine, np.moveaxis(np.indices(fixed.geometry.shape), 0, -1))
    np.testing.assert_allclose(points + result.displacement, apply_affine(matrix, points), atol=0.01)
    points = apply_affine(moving.geometry.affine, np.moveaxis(np.indices(moving.geometry.shape), 0, -1))
    np.testing.assert_allclose(points + result.inverse, apply_affine(np.linalg.inv(matrix), points), atol=0.01)
    right = dice_per_label(
        warp_label_map(moving_labels, result.displacement, fixed.geometry), fixed_labels.array, (3, 7)
    )
    assert min(right.values()) > 0.85
    wrong = predictor.register([moving], [fixed], np.linalg.inv(matrix))
    found = dice_per_label(
        warp_label_map(moving_labels, wrong.displacement, fixed.geometry), fixed_labels.array, (3, 7)
    )
    assert max(found.values()) < 0.6


def test_the_network_sees_the_moving_image_where_the_transform_puts_it(make_predictor, make_grid, draw_anatomy, write):
    """The network's own field comes on top: q = T · F · Φ(F⁻¹ p) with F the frame of the fixed image."""
    matrix = read_linear_transform(write(euler()))
    fixed, _ = draw_anatomy(make_grid(), (2, -1, 0))
    moving = carried(fixed, matrix)
    predictor = make_predictor(shift=(2.0, 0.0, -1.0))  # voxels of 2 × 2.5 × 3 mm
    result = predictor.register([moving], [fixed], matrix)
    points = apply_affine(fixed.geometry.affine, np.moveaxis(np.indices(fixed.geometry.shape), 0, -1))
    expected = apply_affine(matrix, points + np.array([4.0, 0.0, -3.0]))
    np.testing.assert_allclose(points + result.displacement, expected, atol=0.01)


def test_the_identity_keeps_the_headers(make_predictor, make_grid, draw_anatomy, write):
    matrix = read_linear_transform(write(SimpleITK.TranslationTransform(3)))
    fixed, _ = draw_anatomy(make_grid(), (0, 0, 0))
    moving, _ = draw_anatomy(make_grid("LPS"), (12, 0, 0))
    np.testing.assert_allclose(make_predictor().register([moving], [fixed], matrix).displacement, 0, atol=1e-5)
    shift = foreground_center(moving, "MRI") - foreground_center(fixed, "MRI")
    assert shift[0] == pytest.approx(12, abs=1.5)  # which is what would have been done otherwise


@pytest.fixture
def pairs(tmp_path, write_pair):
    write_pair(tmp_path / "pairs", "a")
    write_pair(tmp_path / "pairs", "b")
    return tmp_path / "pairs"


def run(pairs, model, **options):
    predict_pairs(
        pairs, pairs.parent / "out", find_model(model.parents[1], ModelRequest()), CPU, PredictOptions(**options)
    )
    return pairs.parent / "out"


@pytest.mark.parametrize("ending", [".tfm", ".mat", ".h5"])
def test_the_warped_image_is_what_simpleitk_makes_of_the_same_transform(ending, pairs, write_model):
    transform = euler(angles=(0.05, 0.0, 0.1), shift=(-8.0, 1.0, 2.0), center=(-20.0, 0.0, 5.0))
    SimpleITK.WriteTransform(transform, str(pairs / f"a_initial{ending}"))
    out = run(pairs, write_model())

    fixed, moving = (SimpleITK.ReadImage(str(pairs / f"a_{role}.nii.gz")) for role in ("fixed", "moving"))
    expected = SimpleITK.GetArrayFromImage(SimpleITK.Resample(moving, fixed, transform, SimpleITK.sitkLinear, 0.0)).T
    found = read_image(out / "a_warped.nii.gz").array
    inside = (
        SimpleITK.GetArrayFromImage(SimpleITK.Resample(moving * 0 + 1, fixed, transform, SimpleITK.sitkLinear, 0.0)).T
        == 1
    )
    assert inside.mean() > 0.4
    assert expected[inside].max() > 400
    np.testing.assert_allclose(found[inside], expected[inside], atol=2.0)  # fields are rounded to 1/1000 of a voxel
    displacement, grid = read_displacement(out / "a_warp.nii.gz")
    corner = ras_to_lps(apply_affine(grid.affine, np.zeros(3)))
    arrives = corner + ras_to_lps(displacement[0, 0, 0])
    np.testing.assert_allclose(arrives, transform.TransformPoint(corner.tolist()), atol=0.01)


def test_the_record_says_what_pre_aligned_a_pair(pairs, write_model):
    SimpleITK.WriteTransform(euler(), str(pairs / "a_initial.tfm"))
    out = run(pairs, write_model())
    given, planned = (read_record(out / f"{pair}.json", PredictionRecord) for pair in "ab")
    assert (given.prealignment, planned.prealignment) == ("given", "center")
    assert [file.sha256 for file in given.inputs if file.role == "initial"] == [file_hash(pairs / "a_initial.tfm")]
    assert not [file for file in planned.inputs if file.role == "initial"]


def test_another_transform_is_noticed_when_continuing(pairs, write_model):
    SimpleITK.WriteTransform(euler(), str(pairs / "a_initial.tfm"))
    model = write_model()
    out = run(pairs, model)
    before = (out / "a_warp.nii.gz").read_bytes()
    SimpleITK.WriteTransform(euler(shift=(0.0, 0.0, 0.0)), str(pairs / "a_initial.tfm"))
    run(pairs, model, overwrite=False)
    assert (out / "a_warp.nii.gz").read_bytes() != before
    (pairs / "a_initial.tfm").unlink()
    run(pairs, model, overwrite=False)
    assert read_record(out / "a.json", PredictionRecord).prealignment == "center"


def test_a_transform_that_cannot_be_used_fails_its_pair_alone(pairs, write_model):
    SimpleITK.WriteTransform(SimpleITK.BSplineTransform(3), str(pairs / "a_initial.tfm"))
    model = find_model(write_model().parents[1], ModelRequest())
    failures = predict_pairs(pairs, pairs.parent / "out", model, CPU, PredictOptions())
    assert list(failures) == ["a"]
    assert "a_initial.tfm: holds BSplineTransform" in failures["a"]
