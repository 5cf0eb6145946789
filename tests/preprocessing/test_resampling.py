import numpy as np
import pytest
import SimpleITK
from scipy import ndimage

from biasreg.core.geometry import Geometry
from biasreg.preprocessing.resampling import field_of_view, labels_to_canonical, shrink, to_canonical

GRID = Geometry.centered((14, 12, 10), (2.0, 2.0, 2.5))


def rotation(degrees):
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])


def geometry(direction, spacing, shape=(18, 17, 16)):
    affine = np.eye(4)
    affine[:3, :3] = np.array(direction) * spacing
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2 + [1.0, -2.0, 3.0]
    return Geometry.from_affine(affine, shape)


GEOMETRIES = {
    "RAS": geometry(np.eye(3), (2.0, 2.1, 2.5)),
    "LPS": geometry(np.diag([-1.0, -1.0, 1.0]), (2.0, 2.1, 2.5)),
    "LAS": geometry(np.diag([-1.0, 1.0, 1.0]), (2.0, 2.1, 2.5)),
    "oblique": geometry(rotation(20), (2.2, 2.4, 3.0)),
    "permuted": geometry([[0, 0, 1.0], [1.0, 0, 0], [0, 1.0, 0]], (2.5, 3.0, 2.0)),
}


@pytest.fixture
def frame():
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(10) * 1.05
    matrix[:3, 3] = [2.0, -1.0, 1.5]
    return matrix


@pytest.fixture
def image():
    return ndimage.gaussian_filter(np.random.default_rng(0).random((18, 17, 16)), 1).astype(np.float32)


def by_simpleitk(array, native, frame, fill):
    """Resample with ITK, whose world is LPS: both grids and the transform are handed over in one frame of their own."""
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(native.spacing)
    image.SetOrigin(native.origin)
    image.SetDirection(np.array(native.direction).ravel().tolist())
    transform = SimpleITK.AffineTransform(3)
    transform.SetMatrix(frame[:3, :3].ravel().tolist())
    transform.SetTranslation(frame[:3, 3].tolist())
    size = [int(side) for side in GRID.shape]
    arguments = (transform, SimpleITK.sitkLinear, GRID.origin, GRID.spacing, np.eye(3).ravel().tolist(), fill)
    return SimpleITK.GetArrayFromImage(SimpleITK.Resample(image, size, *arguments)).T


@pytest.mark.parametrize("name", GEOMETRIES)
def test_images_are_found_through_the_world_as_itk_finds_them(name, frame, image):
    native = GEOMETRIES[name]
    step = np.linalg.norm((np.linalg.inv(native.affine) @ frame @ GRID.affine)[:3, :3], axis=1)
    sigma = 0.5 * np.sqrt(np.maximum(step**2 - 1, 0))
    smooth = ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3.0)
    expected = by_simpleitk(smooth, native, frame, -1.0)
    result = to_canonical(image, native, GRID, frame, fill=-1.0)
    assert np.mean((result == -1) != (expected == -1)) < 0.01  # both faces of the grid count as outside or inside
    both = (result != -1) & (expected != -1)
    assert both.mean() > 0.3
    np.testing.assert_allclose(result[both], expected[both], atol=2e-4)


def test_only_axes_that_get_coarser_are_smoothed(image):
    native = Geometry.centered((18, 17, 16), (1.0, 2.0, 2.5))
    fine = Geometry.centered((18, 17, 16), (1.0, 2.0, 2.5))
    np.testing.assert_allclose(to_canonical(image, native, fine, np.eye(4), fill=0.0), image, atol=1e-6)
    impulse = np.zeros_like(image)
    impulse[9, 8, 8] = 1
    coarse = Geometry.centered((6, 17, 16), (3.0, 2.0, 2.5))
    spread = to_canonical(impulse, native, coarse, np.eye(4), fill=0.0)
    assert np.count_nonzero(spread.sum(axis=(0, 2))) == 1
    assert 0 < spread.max() < 0.5


@pytest.mark.parametrize("name", GEOMETRIES)
def test_labels_are_each_interpolated_and_the_strongest_wins(name, frame):
    native = GEOMETRIES[name]
    noise = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=native.shape), 2)
    labels = np.digitize(noise, [-0.05, 0.0, 0.05]).astype(np.uint8) * 3  # 0, 3, 6, 9
    values = (3, 6, 9)
    result = labels_to_canonical(labels, native, GRID, frame, values)
    matrix = np.linalg.inv(native.affine) @ frame @ GRID.affine
    sigma = 0.5 * np.sqrt(np.maximum(np.linalg.norm(matrix[:3, :3], axis=1) ** 2 - 1, 0))
    shares = [
        ndimage.affine_transform(
            ndimage.gaussian_filter((labels == value).astype(np.float32), sigma, mode="nearest"),
            matrix[:3, :3],
            matrix[:3, 3],
            output_shape=GRID.shape,
            order=1,
            mode="nearest",
        )
        for value in values
    ]
    expected = np.argmax([1 - np.sum(shares, axis=0), *shares], axis=0)
    expected[~field_of_view(native, GRID, frame)] = 0
    np.testing.assert_array_equal(result, expected)
    assert set(np.unique(result)) <= {0, 1, 2, 3}
    assert result.dtype == np.uint8


def test_a_point_ends_where_its_frame_says(frame):
    native = GEOMETRIES["oblique"]
    labels = np.zeros(native.shape, np.uint8)
    labels[8:10, 8:10, 8:10] = 1
    result = labels_to_canonical(labels, native, GRID, frame, (1,))
    world = (native.affine @ [8.5, 8.5, 8.5, 1])[:3]
    expected = (np.linalg.inv(frame @ GRID.affine) @ [*world, 1])[:3]
    np.testing.assert_allclose(np.argwhere(result).mean(axis=0), expected, atol=0.5)


def test_the_field_of_view_counts_voxels_whole():
    native = Geometry.centered((4, 4, 4), (2.0, 2.0, 2.0))
    grid = Geometry.centered((8, 8, 8), (1.0, 1.0, 1.0))
    assert field_of_view(native, grid, np.eye(4)).all()
    shifted = np.eye(4)
    shifted[0, 3] = 4.0
    assert field_of_view(native, grid, shifted).mean() == 0.5


def test_a_sample_on_the_very_edge_is_inside_however_it_is_rounded(frame):
    native = Geometry.centered((6, 6, 6), (0.3, 0.7, 1.1))
    grid = Geometry.centered((7, 7, 7), (0.3, 0.7, 1.1))  # its outer centres lie on the native grid's faces
    assert field_of_view(native, grid, np.eye(4)).all()
    away = frame.copy()
    away[:3, 3] = 1000
    assert not field_of_view(native, grid, away).any()


def test_a_label_at_the_border_reaches_to_the_border():
    native = Geometry.centered((6, 6, 6), (2.0, 2.0, 2.0))
    grid = Geometry.centered((16, 16, 16), (1.0, 1.0, 1.0))
    labels = np.full(native.shape, 9, np.uint8)
    result = labels_to_canonical(labels, native, grid, np.eye(4), (9,))
    np.testing.assert_array_equal(result == 1, field_of_view(native, grid, np.eye(4)))
    assert np.count_nonzero(result) == 12**3


def test_labels_outside_the_grid_and_absent_ones_give_background(frame):
    native = GEOMETRIES["oblique"]
    labels = np.zeros(native.shape, np.uint8)
    labels[2:5, 2:5, 2:5] = 4
    away = frame.copy()
    away[:3, 3] = 500.0
    assert not labels_to_canonical(labels, native, GRID, away, (4,)).any()
    assert not labels_to_canonical(labels, native, GRID, frame, (5, 7)).any()
    assert not labels_to_canonical(labels, native, GRID, frame, ()).any()


def test_many_labels_get_a_wider_type():
    native = Geometry.centered((8, 8, 8), (1.0, 1.0, 1.0))
    labels = np.arange(512).reshape(native.shape).astype(np.int32) * 5
    values = tuple(range(5, 512 * 5, 5))
    result = labels_to_canonical(labels, native, native, np.eye(4), values)
    assert result.dtype == np.uint16
    np.testing.assert_array_equal(result, labels // 5)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_an_image_of_coordinates_gives_the_world_position_of_each_sample(name, frame):
    native = GEOMETRIES[name]
    world = np.moveaxis(np.indices(native.shape), 0, -1) @ native.affine[:3, :3].T + native.affine[:3, 3]
    # Smoothing keeps linear functions but near the border, so that only the inside is compared.
    small = Geometry.centered((6, 5, 4), GRID.spacing)
    expected = np.moveaxis(np.indices(small.shape), 0, -1) @ small.affine[:3, :3].T + small.affine[:3, 3]
    expected = expected @ frame[:3, :3].T + frame[:3, 3]
    for axis in range(3):
        sampled = to_canonical(world[..., axis], native, small, frame, fill=np.nan)
        np.testing.assert_allclose(sampled, expected[..., axis], atol=1e-3)


def test_shrinking_averages_whole_blocks_and_stays_in_place():
    native = geometry(rotation(20), (0.5, 1.0, 3.0), shape=(13, 9, 5))
    world = np.moveaxis(np.indices(native.shape), 0, -1) @ native.affine[:3, :3].T + native.affine[:3, 3]
    _, smaller = shrink(world[..., 0], native, 2.2)
    assert smaller.shape == (3, 4, 5)
    np.testing.assert_allclose(smaller.spacing, (2.0, 2.0, 3.0))
    places = np.moveaxis(np.indices(smaller.shape), 0, -1) @ smaller.affine[:3, :3].T + smaller.affine[:3, 3]
    for axis in range(3):
        np.testing.assert_allclose(shrink(world[..., axis], native, 2.2)[0], places[..., axis], atol=1e-4)


def test_shrinking_leaves_a_coarse_image_as_it_is(image):
    native = GEOMETRIES["LPS"]
    result, same = shrink(image, native, 2.0)
    np.testing.assert_array_equal(result, image)
    assert same.is_close(native)
