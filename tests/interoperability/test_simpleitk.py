"""SimpleITK applies what biasreg writes as biasreg does; positions and vectors are turned into LPS by hand here."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from biasreg.core.image_io import read_labels

INTENSITY_TOLERANCE = 1e-3  # of the moving image's range
POINT_TOLERANCE_MM = 1e-3
LPS = np.array([-1.0, -1.0, 1.0])


def load(pair, name: str) -> sitk.Image:
    return sitk.ReadImage(str(pair.folder / f"{name}.nii.gz"))


def warp_transform(pair, suffix: str = "warp") -> sitk.Transform:
    vectors = sitk.ReadImage(str(pair.files.path(suffix, ".nii.gz")), sitk.sitkVectorFloat64)
    return sitk.DisplacementFieldTransform(vectors)


def composite_transform(pair) -> sitk.Transform:
    return sitk.ReadTransform(str(pair.files.path("warp", ".h5")))


TRANSFORMS = [pytest.param(warp_transform, id="warp.nii.gz"), pytest.param(composite_transform, id="warp.h5")]


def array(image: sitk.Image) -> np.ndarray:
    """(X, Y, Z[, components])."""
    return np.swapaxes(sitk.GetArrayFromImage(image), 0, 2)


def resample(pair, transform: sitk.Transform, name: str, interpolator: int, padding: float) -> np.ndarray:
    return array(sitk.Resample(load(pair, name), load(pair, "fixed"), transform, interpolator, padding))


def displacement_of(transform: sitk.Transform, grid: sitk.Image) -> np.ndarray:
    """T(p) − p at each voxel of a grid, (X, Y, Z, 3) in RAS mm."""
    vectors = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, grid.GetSize(), grid.GetOrigin(), grid.GetSpacing(), grid.GetDirection()
    )
    return array(vectors) * LPS


def read_lps(path: Path) -> np.ndarray:
    return np.loadtxt(path, delimiter=",", skiprows=1, usecols=(0, 1, 2))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_positive_shift_finds_a_fixed_point_right_back_and_up_in_the_moving_image(transform, shifted_pair):
    transform = transform(shifted_pair)
    for point in read_lps(shifted_pair.folder / "fixed_points.csv")[:5]:
        shift = np.array(transform.TransformPoint(point)) - point
        np.testing.assert_allclose(shift, [-6.0, 4.0, 3.0], atol=POINT_TOLERANCE_MM)  # (6, -4, 3) in RAS
    warped = resample(shifted_pair, transform, "moving", sitk.sitkLinear, shifted_pair.padding)
    fixed = load(shifted_pair, "fixed")
    positions = np.stack([fixed.TransformIndexToPhysicalPoint(i) for i in np.ndindex(*fixed.GetSize())]) * LPS
    weights = warped.astype(np.float64).ravel()
    ball = weights @ positions / weights.sum()
    np.testing.assert_allclose(ball, np.array([12.0, -25.0, 40.0]) - [6.0, -4.0, 3.0], atol=0.1)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_an_image_is_warped_as_written(transform, pair):
    warped = resample(pair, transform(pair), "moving", sitk.sitkLinear, pair.padding)
    assert pair.intensity_error(warped) < INTENSITY_TOLERANCE


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_points_are_mapped_to_p_plus_d(transform, pair):
    transform = transform(pair)
    mapped = [transform.TransformPoint(point) for point in read_lps(pair.folder / "fixed_points.csv")]
    np.testing.assert_allclose(np.array(mapped) * LPS, pair.mapped_points, atol=POINT_TOLERANCE_MM)


def test_labels_are_warped_as_written_by_linear_votes(deformed_pair):
    pair = deformed_pair
    warped = resample(pair, warp_transform(pair), "moving_seg", sitk.sitkLabelLinear, 0)
    written = read_labels(pair.files.path("warped_seg")).array
    assert len(np.unique(written)) == 4
    np.testing.assert_array_equal(warped[pair.inside], written[pair.inside])
    assert not warped[pair.outside].any()
    assert not written[pair.outside].any()


def test_labels_of_the_nearest_voxel_agree(deformed_pair):
    pair = deformed_pair
    warped = resample(pair, warp_transform(pair), "moving_seg", sitk.sitkNearestNeighbor, 0)
    assert pair.off_ties.mean() > 0.6
    np.testing.assert_array_equal(warped[pair.off_ties], pair.nearest_labels[pair.off_ties])


def test_the_written_inverse_undoes_the_field_within_the_reported_error(pair):
    inverse_first = sitk.CompositeTransform([warp_transform(pair), warp_transform(pair, "inverse_warp")])
    distance = np.linalg.norm(displacement_of(inverse_first, load(pair, "moving")), axis=-1)
    reported = pair.prediction.quality.inverse_error
    assert pair.returning.mean() > 0.6
    assert distance[pair.returning].max() <= reported.max_mm + POINT_TOLERANCE_MM
    assert distance[pair.returning].mean() == pytest.approx(reported.mean_mm, abs=POINT_TOLERANCE_MM)
    assert reported.mean_mm < 0.02


def affine_transform(matrix: np.ndarray) -> sitk.Transform:
    """The affine transform of ITK's world, from one of RAS."""
    turned = LPS[:, None] * matrix[:3, :3] * LPS
    return sitk.AffineTransform(turned.ravel().tolist(), (LPS * matrix[:3, 3]).tolist())


def test_a_field_behind_a_pre_alignment_is_itks_composite_of_affine_field_and_affine(deformed_pair):
    """T = F_moving ∘ (identity + u) ∘ F_fixed⁻¹, wherever F_fixed⁻¹ p lies on the canonical grid."""
    pair = deformed_pair
    spacing, half = 2.5, (np.array(pair.field.shape[2:]) - 1) / 2
    vectors = pair.field[0].numpy().transpose(3, 2, 1, 0).astype(np.float64) * spacing * LPS  # (Z, Y, X, 3)
    canonical = sitk.GetImageFromArray(vectors, isVector=True)
    canonical.SetSpacing([spacing] * 3)
    canonical.SetOrigin(-spacing * half * LPS)
    canonical.SetDirection(np.diag(LPS).ravel())
    to_canonical = affine_transform(np.linalg.inv(pair.frames[0]))
    fixed = load(pair, "fixed")
    on_grid = np.array(
        [
            np.abs(np.array(to_canonical.TransformPoint(fixed.TransformIndexToPhysicalPoint(index))))
            <= spacing * (half + 0.4)  # ITK displaces nothing beyond half a voxel from the outermost centres
            for index in np.ndindex(*fixed.GetSize())
        ]
    ).all(axis=-1)
    on_grid = on_grid.reshape(pair.fixed.shape)
    assert on_grid.mean() > 0.8
    field = sitk.DisplacementFieldTransform(canonical)
    total = sitk.CompositeTransform([affine_transform(pair.frames[1]), field, to_canonical])  # the last comes first
    expected = displacement_of(total, fixed)
    written = displacement_of(warp_transform(pair), fixed)
    np.testing.assert_allclose(written[on_grid], expected[on_grid], atol=POINT_TOLERANCE_MM)
