import numpy as np
import pytest
import SimpleITK
from scipy.ndimage import gaussian_filter

from biasreg.core import itk
from biasreg.core.geometry import Geometry, apply_affine, ras_to_lps
from biasreg.core.transforms import FieldPart, LinearPart
from biasreg.spatial import transform_chain
from biasreg.spatial.transform_chain import (
    compose,
    grid_sample_points,
    invert_parts,
    map_points,
    polish_inverse,
    round_trip_mm,
)


def oblique(scale, handedness=1.0) -> Geometry:
    rotation = np.array(SimpleITK.VersorTransform([0.3, -0.5, 0.8], 0.4).GetMatrix()).reshape(3, 3)
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.array(scale) * (handedness, 1, 1)
    affine[:3, 3] = (11.0, -22.0, 33.0)
    return Geometry.from_affine(affine, (22, 24, 26))


GRIDS = {
    "RAS": Geometry.from_affine(np.diag([2.0, 2.0, 2.0, 1.0]), (22, 24, 26)),
    "LAS": Geometry.from_affine(np.diag([-2.0, 2.0, 2.0, 1.0]), (22, 24, 26)),
    "LPS": Geometry.from_affine(np.diag([-2.0, -2.0, 2.0, 1.0]), (22, 24, 26)),
    "oblique": oblique((2.0, 2.0, 2.0)),
    "left-handed anisotropic": oblique((1.0, 1.5, 4.0), -1.0),
}


@pytest.fixture(params=GRIDS)
def geometry(request) -> Geometry:
    return GRIDS[request.param]


def smooth(geometry: Geometry, amplitude: float, seed: int = 0) -> FieldPart:
    noise = np.random.default_rng(seed).normal(size=(*geometry.shape, 3))
    field = gaussian_filter(noise, (3, 3, 3, 0), mode="nearest")
    return FieldPart((amplitude * field / np.abs(field).max()).astype(np.float32), geometry, "field", "a.nii.gz")


def affine_part(geometry: Geometry) -> LinearPart:
    rotation = np.array(SimpleITK.VersorTransform([-0.2, 0.9, 0.1], 0.3).GetMatrix()).reshape(3, 3)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * (1.1, 0.9, 1.0)
    matrix[:3, 3] = geometry.center - matrix[:3, :3] @ geometry.center + (4, -3, 6)
    return LinearPart(matrix, "AffineTransform", "b.mat")


def sitk_field(part: FieldPart):
    vectors = itk.to_itk(ras_to_lps(part.displacement).astype(np.float64), part.geometry)
    return SimpleITK.DisplacementFieldTransform(vectors)


def sitk_affine(part: LinearPart):
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    matrix = flip @ part.matrix @ flip
    transform = SimpleITK.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3].tolist())
    return transform


def inner_points(geometry: Geometry, count: int = 200, margin: float = 6) -> np.ndarray:
    voxels = np.random.default_rng(1).uniform(size=(count, 3)) * (np.array(geometry.shape) - 1 - 2 * margin) + margin
    return apply_affine(geometry.affine, voxels)


def test_points_go_where_simpleitk_takes_them(geometry):
    field, linear = smooth(geometry, 4.0), affine_part(geometry)
    for chain, itk_order in (((field, linear), (linear, field)), ((linear, field), (field, linear))):
        composite = SimpleITK.CompositeTransform(3)
        for part in itk_order:
            composite.AddTransform(sitk_field(part) if isinstance(part, FieldPart) else sitk_affine(part))
        points = inner_points(geometry)
        mapped = map_points(chain, points)
        expected = np.array([composite.TransformPoint(point) for point in ras_to_lps(points).tolist()])
        reached = np.array(mapped.outside) == 0
        assert reached[chain.index(linear)]
        if reached.all():  # beyond its field ITK displaces nothing
            np.testing.assert_allclose(ras_to_lps(mapped.points), expected, atol=1e-3)
    assert map_points((field,), inner_points(geometry)).outside == (0,)


def test_the_composed_field_is_what_the_chain_does_at_each_voxel(geometry, monkeypatch):
    monkeypatch.setattr(transform_chain, "SLAB_VOXELS", 1500)
    chain = (smooth(geometry, 4.0), affine_part(geometry), smooth(geometry, 3.0, seed=1))
    for reference in (geometry, GRIDS["RAS"]):
        composed = compose(chain, reference)
        points = apply_affine(reference.affine, np.stack(np.indices(reference.shape), axis=-1)).reshape(-1, 3)
        expected = map_points(chain, points)
        got = points + composed.displacement.reshape(-1, 3)
        np.testing.assert_allclose(got, expected.points, atol=1e-3)
        assert abs(composed.outside[2] - expected.outside[2]) <= 3
        assert composed.displacement.dtype == np.float32


def test_a_field_on_the_reference_is_taken_as_it_is(geometry):
    field = smooth(geometry, 4.0)
    composed = compose([field], geometry)
    assert composed.displacement is field.displacement
    assert composed.outside == (0,)


def test_beyond_its_grid_a_field_keeps_its_border_and_counts_points():
    grid = GRIDS["RAS"]
    field = np.zeros((*grid.shape, 3), np.float32)
    field[-1] = (1.0, 2.0, 3.0)
    part = FieldPart(field, grid, "field", "a.nii.gz")
    points = np.array([[42.0, 10, 10], [42.9, 10, 10], [43.1, 10, 10], [500, 10, 10], [-30, 10, 10]])
    mapped = map_points([part], points)
    np.testing.assert_allclose((mapped.points - points)[:4], [[1, 2, 3]] * 4, atol=1e-5)
    np.testing.assert_allclose((mapped.points - points)[4], 0, atol=1e-5)
    assert mapped.outside == (3,)


def test_a_chain_is_inverted_part_by_part_in_reverse_order(geometry):
    chain = (smooth(geometry, 3.0), affine_part(geometry), smooth(geometry, 2.0, seed=1))
    inverse = invert_parts(chain)
    assert [part.source for part in inverse] == ["a.nii.gz", "b.mat", "a.nii.gz"]
    errors = round_trip_mm(chain, inverse, grid_sample_points(geometry, 3000))
    assert errors.max() < 1e-3
    np.testing.assert_array_equal(invert_parts(inverse)[0].displacement, chain[0].displacement)


def test_the_inverse_of_a_matrix_is_exact():
    part = affine_part(GRIDS["RAS"])
    assert round_trip_mm([part], invert_parts([part]), inner_points(GRIDS["RAS"])).max() < 1e-10


def test_a_field_that_holds_a_whole_pre_alignment_is_inverted(geometry):
    far = LinearPart(np.array([[0, -1, 0, 300.0], [1, 0, 0, -200.0], [0, 0, 1, 150.0], [0, 0, 0, 1]]), "far", "b.mat")
    total = compose((smooth(geometry, 3.0), far), geometry)
    part = FieldPart(total.displacement, geometry, "field", "a.nii.gz")
    points = inner_points(geometry)
    assert round_trip_mm([part], invert_parts([part]), points).max() < 2e-3


def test_where_a_field_folds_the_nearest_point_is_given_and_the_rest_is_found():
    grid = GRIDS["RAS"]
    part = smooth(grid, 14.0)
    errors = round_trip_mm(invert_parts([part]), [part], inner_points(grid, margin=0))
    assert np.isfinite(errors).all()
    assert np.median(errors) < 1e-3


def test_a_point_whose_inverse_leaves_the_field_is_outside():
    grid = GRIDS["RAS"]
    field = FieldPart(np.broadcast_to(np.float32([10, 0, 0]), (*grid.shape, 3)), grid, "field", "a.nii.gz")
    mapped = map_points(invert_parts([field]), np.array([[12.0, 4, 4], [5.0, 4, 4]]))
    np.testing.assert_allclose(mapped.points, [[2, 4, 4], [-5, 4, 4]], atol=1e-3)
    assert mapped.outside == (1,)


def test_a_rough_inverse_is_polished_on_another_grid_and_left_alone_where_it_leaves_the_field(geometry, monkeypatch):
    monkeypatch.setattr(transform_chain, "SLAB_VOXELS", 3000)
    field = smooth(geometry, 4.0)
    shift = np.eye(4)
    shift[:3, 3] = (6.5, -5.5, 4.5)  # voxels
    grid = Geometry.from_affine(geometry.affine @ shift, (20, 21, 22))
    exact = compose(invert_parts([field]), grid).displacement
    rough = exact + np.random.default_rng(1).normal(scale=0.3, size=exact.shape).astype(np.float32)
    found = polish_inverse(rough, grid, field, iterations=20, tolerance_mm=1e-3)
    points = grid_sample_points(grid, 10**6).reshape(*grid.shape, 3)
    voxels = apply_affine(np.linalg.inv(geometry.affine), points + rough)
    inside = ((voxels > 1) & (voxels < np.array(geometry.shape) - 2)).all(axis=-1)
    outside = ((voxels < -1) | (voxels > np.array(geometry.shape))).any(axis=-1)
    assert inside.sum() > 50
    assert outside.sum() > 50
    np.testing.assert_allclose(np.linalg.norm(found - exact, axis=-1)[inside], 0, atol=0.01)
    np.testing.assert_allclose(found[outside], rough[outside], atol=1e-4)
