import nibabel
import numpy as np
import pytest

from biasreg.core.errors import GeometryError
from biasreg.core.geometry import Geometry, apply_affine, mask_box, orientation_code, ras_to_lps, world_box


def rotation(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def affine_of(linear: np.ndarray, origin: tuple[float, float, float] = (10.0, -20.0, 30.0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = origin
    return affine


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, -1, -1)])
@pytest.mark.parametrize("degrees", [0.0, 12.5])
def test_affine_survives_the_round_trip_for_flipped_and_oblique_grids(signs, degrees):
    affine = affine_of(rotation(degrees) @ np.diag(signs) * np.array([0.7, 1.5, 3.0]))
    geometry = Geometry.from_affine(affine, (4, 5, 6))
    np.testing.assert_allclose(geometry.affine, affine, atol=1e-12)
    assert geometry.spacing == pytest.approx((0.7, 1.5, 3.0))


def test_orientation_code_names_the_axes():
    flips_and_swaps = {
        "RAS": np.eye(3),
        "LPS": np.diag([-1.0, -1.0, 1.0]),
        "PLI": np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]),
    }
    for code, linear in flips_and_swaps.items():
        assert orientation_code(Geometry.from_affine(affine_of(linear @ rotation(5.0)), (4, 5, 6))) == code


def test_float32_round_off_is_no_shear():
    affine = affine_of(rotation(33.0) * np.array([0.9375, 0.9375, 5.0])).astype(np.float32)
    assert Geometry.from_affine(affine, (4, 4, 4)).spacing == pytest.approx((0.9375, 0.9375, 5.0), rel=1e-6)


def test_sheared_grid_is_refused_with_its_angle():
    linear = np.eye(3)
    linear[1, 2] = np.tan(np.radians(10.0))
    with pytest.raises(GeometryError, match=r"sheared: array axes 1 and 2 meet at 80\.00°.*resample"):
        Geometry.from_affine(affine_of(linear), (4, 4, 4))


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.diag([1.0, 0.0, 1.0, 1.0]), "singular"),
        (np.diag([1.0, np.nan, 1.0, 1.0]), "finite"),
        (np.eye(3), "4×4"),
    ],
)
def test_unusable_matrices_are_refused(affine, message):
    with pytest.raises(GeometryError, match=message):
        Geometry.from_affine(affine, (4, 4, 4))


def test_two_equal_axes_are_refused():
    linear = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    with pytest.raises(GeometryError, match=r"meet at 0\.00°"):
        Geometry.from_affine(affine_of(linear), (4, 4, 4))


def test_geometry_built_by_hand_is_checked_too():
    axes = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    with pytest.raises(GeometryError, match="positive"):
        Geometry((4, 4, 4), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0), axes)
    with pytest.raises(GeometryError, match="positive side"):
        Geometry((4, 0, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), axes)
    with pytest.raises(GeometryError, match="finite"):
        Geometry((4, 4, 4), (1.0, 1.0, 1.0), (float("inf"), 0.0, 0.0), axes)


def test_centered_grid_has_its_centre_at_the_world_origin_and_ras_axes():
    geometry = Geometry.centered((5, 8, 3), (1.0, 0.5, 2.0))
    np.testing.assert_allclose(geometry.center, 0.0, atol=1e-12)
    assert orientation_code(geometry) == "RAS"
    assert geometry.extent_mm == (5.0, 4.0, 6.0)


def test_center_is_the_mean_of_the_corners():
    geometry = Geometry.from_affine(affine_of(rotation(20.0) * np.array([1.0, 2.0, 3.0])), (4, 5, 6))
    np.testing.assert_allclose(geometry.center, geometry.corners.mean(axis=0), atol=1e-12)


def test_closeness_is_judged_at_the_corners():
    geometry = Geometry.centered((100, 100, 100), (1.0, 1.0, 1.0))
    moved = geometry.affine
    moved[0, 3] += 5e-4
    assert geometry.is_close(Geometry.from_affine(moved, (100, 100, 100)))
    stretched = geometry.affine
    stretched[0, 0] *= 1.0001
    assert not geometry.is_close(Geometry.from_affine(stretched, (100, 100, 100)))
    assert geometry.is_close(Geometry.from_affine(stretched, (100, 100, 100)), tolerance_mm=0.02)
    assert not geometry.is_close(Geometry.centered((100, 100, 99), (1.0, 1.0, 1.0)))


def test_apply_affine_agrees_with_nibabel():
    generator = np.random.default_rng(0)
    affine = affine_of(generator.normal(size=(3, 3)))
    points = generator.normal(size=(2, 7, 3))
    np.testing.assert_allclose(apply_affine(affine, points), nibabel.affines.apply_affine(affine, points))


def test_lps_flips_the_first_two_components_and_is_its_own_inverse():
    vectors = np.array([[1.0, 2.0, 3.0]], dtype=np.float32)
    assert ras_to_lps(vectors).tolist() == [[-1.0, -2.0, 3.0]]
    assert ras_to_lps(vectors).dtype == np.float32
    assert ras_to_lps(ras_to_lps(vectors)).tolist() == vectors.tolist()
    assert ras_to_lps([1, 2, 3]).dtype == np.float64


def test_the_box_of_a_mask_holds_its_voxels_and_not_the_corners_of_their_index_box():
    half = np.sqrt(0.5)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[half, -half, 0], [half, half, 0], [0, 0, 1]]) * [1.0, 1.0, 2.0]
    geometry = Geometry.from_affine(affine, (21, 21, 5))
    x, y = np.ogrid[-10:11, -10:11]
    mask = np.zeros(geometry.shape, bool)
    mask[..., 1:4] = ((x**2 + y**2) <= 64)[..., None]
    center, extent = mask_box(geometry, mask)
    points = apply_affine(affine, np.argwhere(mask))
    assert extent == pytest.approx(np.add(np.ptp(points, axis=0), [2 * half, 2 * half, 2.0]))
    assert center == pytest.approx((points.min(axis=0) + points.max(axis=0)) / 2)
    assert world_box(geometry, [(2, 19), (2, 19), (1, 4)])[1][0] > 1.3 * extent[0]
    straight = Geometry.centered((6, 5, 4), (1.0, 2.0, 3.0))
    block = np.zeros(straight.shape, bool)
    block[1:4, 2:5, 0:2] = True
    expected = world_box(straight, [(1, 4), (2, 5), (0, 2)])
    assert mask_box(straight, block)[0] == pytest.approx(expected[0])
    assert mask_box(straight, block)[1] == pytest.approx(expected[1])
