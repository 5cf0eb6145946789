import numpy as np
import pytest
import SimpleITK
from scipy.ndimage import gaussian_filter

from biasreg.core import itk
from biasreg.core.errors import ImageError
from biasreg.core.geometry import Geometry, ras_to_lps
from biasreg.core.image_io import Image
from biasreg.core.series_io import Series
from biasreg.core.transforms import FieldPart
from biasreg.inference.apply import (
    apply_to_image,
    apply_to_labels,
    apply_to_points,
    apply_to_series,
    compose_transforms,
    jacobian_of,
    looks_like_labels,
)
from biasreg.spatial.native import warp_image, warp_label_map

ROTATION = np.array(SimpleITK.VersorTransform([0.3, -0.5, 0.8], 0.4).GetMatrix()).reshape(3, 3)


def grid(axes: np.ndarray, spacing, shape) -> Geometry:
    affine = np.eye(4)
    affine[:3, :3] = axes * np.array(spacing)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return Geometry.from_affine(affine, shape)


FIXED = grid(ROTATION, (2.0, 2.0, 3.0), (18, 20, 14))
MOVING = grid(np.diag([-1.0, -1.0, 1.0]), (1.5, 1.5, 2.0), (26, 28, 22))


def smooth_noise(shape, seed) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), (2, 2, 2, 0)[: len(shape)])
    return noise / np.abs(noise).max()


FIELD = FieldPart((4 * smooth_noise((*FIXED.shape, 3), 0)).astype(np.float32), FIXED, "field", "a.nii.gz")
IMAGE = Image((500 + 500 * smooth_noise(MOVING.shape, 1)).astype(np.float32), MOVING)
LABELS = Image((np.digitize(smooth_noise(MOVING.shape, 2), [-0.2, 0.1, 0.3]) * 7).astype(np.uint8), MOVING)
TRANSFORM = compose_transforms([FIELD], FIXED)


def by_simpleitk(volume: np.ndarray, interpolator: int, outside: float) -> np.ndarray:
    vectors = itk.to_itk(ras_to_lps(FIELD.displacement).astype(np.float64), FIXED)
    reference = itk.to_itk(np.zeros(FIXED.shape, np.float32), FIXED)
    transform = SimpleITK.DisplacementFieldTransform(vectors)
    result = SimpleITK.Resample(itk.to_itk(volume, MOVING), reference, transform, interpolator, outside)
    return SimpleITK.GetArrayFromImage(result).transpose(2, 1, 0)


@pytest.mark.parametrize(
    ("interpolation", "interpolator"),
    [("linear", SimpleITK.sitkLinear), ("bspline", SimpleITK.sitkBSpline), ("nearest", SimpleITK.sitkNearestNeighbor)],
)
def test_images_are_those_of_simpleitk_within_a_grey_level(interpolation, interpolator):
    expected = by_simpleitk(IMAGE.array, interpolator, float(IMAGE.array.min()))
    found = apply_to_image(IMAGE, TRANSFORM, interpolation)
    different = np.abs(found - expected) > 1
    assert different.mean() < 2e-3  # at the faces and between two voxels, where rounding decides
    assert found.dtype == np.float32


def test_labels_are_those_of_simpleitk_and_of_prediction():
    found = apply_to_labels(LABELS, TRANSFORM)
    np.testing.assert_array_equal(found, warp_label_map(LABELS, FIELD.displacement, FIXED))
    assert (found != by_simpleitk(LABELS.array, SimpleITK.sitkLabelLinear, 0)).mean() < 2e-3
    assert set(np.unique(found)) == {0, 7, 14, 21}


def test_images_are_resampled_as_by_prediction():
    np.testing.assert_array_equal(apply_to_image(IMAGE, TRANSFORM), warp_image(IMAGE, FIELD.displacement, FIXED))


def test_outside_is_the_minimum_or_the_value_that_is_asked_for():
    far = FieldPart(FIELD.displacement + np.float32([15, 0, 0]), FIXED, "field", "a.nii.gz")
    transform = compose_transforms([far], FIXED)
    for interpolation in ("linear", "nearest", "bspline"):
        by_default = apply_to_image(IMAGE, transform, interpolation)
        filled = apply_to_image(IMAGE, transform, interpolation, fill=-3.0)
        outside = filled == -3
        assert 0.1 < outside.mean() < 0.9
        assert (by_default[outside] == IMAGE.array.min()).all()
        np.testing.assert_array_equal(by_default[~outside], filled[~outside])
    assert (apply_to_labels(LABELS, transform)[outside] == 0).all()


def test_every_volume_of_a_series_goes_through_the_same_transform():
    volumes = [IMAGE.array + 10 * number for number in range(3)]
    series = Series(np.stack(volumes, axis=-1)[:, :, :, None], MOVING)  # (X, Y, Z, 1, 3)
    found = apply_to_series(series, TRANSFORM, fill=0.0)
    assert found.shape == (*FIXED.shape, 1, 3)
    for number, volume in enumerate(volumes):
        np.testing.assert_array_equal(found[..., 0, number], apply_to_image(Image(volume, MOVING), TRANSFORM, fill=0.0))


def test_the_minimum_of_a_series_is_that_of_all_volumes():
    far = compose_transforms([FieldPart(FIELD.displacement + np.float32([15, 0, 0]), FIXED, "field", "a")], FIXED)
    series = Series(np.stack([IMAGE.array, IMAGE.array + 100], axis=-1), MOVING)
    found = apply_to_series(series, far)
    assert found[..., 1].min() == IMAGE.array.min()


def test_nearest_keeps_type_and_large_values():
    large = Image(LABELS.array.astype(np.int64) * 2**40 + 1, MOVING)
    found = apply_to_image(large, TRANSFORM, "nearest")
    assert found.dtype == np.int64
    assert set(np.unique(found)) <= set(np.unique(large.array))


def test_points_go_from_the_fixed_to_the_moving_image():
    corner = FIXED.affine[:3, :3] @ [5, 6, 7] + FIXED.affine[:3, 3]
    mapped = apply_to_points(corner[None], [FIELD])
    np.testing.assert_allclose(mapped.points[0], corner + FIELD.displacement[5, 6, 7], atol=1e-4)


def test_the_jacobian_of_a_matrix_is_its_determinant():
    points = np.moveaxis(np.indices(FIXED.shape), 0, -1) @ FIXED.affine[:3, :3].T + FIXED.affine[:3, 3]
    field = FieldPart((points * [0.1, -0.2, 0.3]).astype(np.float32), FIXED, "field", "a.nii.gz")
    np.testing.assert_allclose(jacobian_of(compose_transforms([field], FIXED)), 1.1 * 0.8 * 1.3, atol=1e-3)


def test_a_transform_that_leads_nowhere_is_refused_with_both_places():
    away = compose_transforms([FieldPart(FIELD.displacement + np.float32([500, 0, 0]), FIXED, "field", "a")], FIXED)
    with pytest.raises(ImageError, match=r"leads nowhere into the image: the middle of the reference.*swapped"):
        apply_to_image(IMAGE, away)


@pytest.mark.parametrize(
    ("interpolation", "array", "fill", "words"),
    [
        ("label", LABELS.array, 3.0, "label maps have 0"),
        ("label", IMAGE.array, None, "labels are whole numbers, but the voxels are of type float32"),
        ("nearest", LABELS.array, -1.0, "fill value -1 does not fit into voxels of type uint8"),
        ("nearest", LABELS.array, 0.5, "does not fit"),
    ],
)
def test_values_that_do_not_fit_are_refused(interpolation, array, fill, words):
    with pytest.raises(ImageError, match=words):
        apply_to_series(Series(array, MOVING), TRANSFORM, interpolation, fill)


def test_a_label_map_may_have_any_whole_type():
    expected = apply_to_labels(LABELS, TRANSFORM)
    for kind in (np.uint8, np.int8, np.uint64):
        series = Series(LABELS.array.astype(kind), LABELS.geometry)
        found = apply_to_series(series, TRANSFORM, "label")
        assert found.dtype == kind
        np.testing.assert_array_equal(found, expected)


def test_label_maps_are_told_from_images():
    assert looks_like_labels(LABELS.array)
    assert looks_like_labels(LABELS.array.astype(np.float32))
    assert not looks_like_labels(IMAGE.array)
    eight_bit = np.random.default_rng(0).integers(1, 256, MOVING.shape).astype(np.uint8)
    eight_bit[:10] = 0
    assert not looks_like_labels(eight_bit)
    assert not looks_like_labels(np.zeros(MOVING.shape, np.uint8))
