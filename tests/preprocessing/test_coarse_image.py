import numpy as np

from biasreg.core.geometry import Geometry, apply_affine
from biasreg.core.image_io import Image
from biasreg.preprocessing.coarse_image import find_anatomy, sample_box
from biasreg.preprocessing.prealign import translation


def ball(flipped=False):
    """A body of 0 HU with a hollow, off the middle of a large scan of air."""
    spacing = np.array([2.0, 2.0, 3.0])
    affine = np.diag([*(spacing * ([-1, -1, 1] if flipped else [1, 1, 1])), 1.0])
    affine[:3, 3] = [90, 90, -60] if flipped else [-90, -90, -60]
    shape = (90, 90, 40)
    points = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)) - [20.0, -10.0, 5.0]
    radius = np.linalg.norm(points, axis=-1)
    values = np.where((radius < 30) & (radius > 8), points[..., 0] * 5, -1000.0)
    return Image(values.astype(np.float32), Geometry.from_affine(affine, shape))


def test_the_anatomy_is_centred_scaled_and_without_holes():
    anatomy = find_anatomy(ball(), "CT")
    np.testing.assert_allclose(anatomy.center, [20.0, -10.0, 5.0], atol=2.0)
    coarse = sample_box(anatomy, translation(anatomy.center), anatomy.extent_mm, 5.0)
    assert coarse.array.dtype == np.float32
    assert coarse.array.min() == 0.0
    assert 0.9 < coarse.array.max() <= 1.0
    middle = tuple(size // 2 for size in coarse.array.shape)
    assert coarse.anatomy[middle]
    assert not coarse.anatomy[0, 0, 0]
    assert coarse.shown.all()


def test_voxels_outside_the_field_of_view_are_not_shown():
    anatomy = find_anatomy(ball(), "CT")
    coarse = sample_box(anatomy, translation(anatomy.center), np.array([60.0, 60.0, 300.0]), 5.0)
    shown = coarse.shown.any(axis=(0, 1)).mean() * coarse.grid.extent_mm[2]
    assert abs(shown - 120.0) < 10.0
    assert not coarse.array[~coarse.shown].any()


def test_the_same_anatomy_on_a_flipped_grid_gives_the_same_samples():
    images = [sample_box(find_anatomy(ball(flip), "CT"), np.eye(4), np.full(3, 90.0), 4.0) for flip in (False, True)]
    assert np.abs(images[0].array - images[1].array).mean() < 0.005  # blocks begin at the other end
    assert (images[0].anatomy != images[1].anatomy).mean() < 0.01


def test_a_box_beside_the_image_is_empty():
    coarse = sample_box(find_anatomy(ball(), "CT"), translation([900.0, 0.0, 0.0]), np.full(3, 60.0), 5.0)
    assert not any(part.any() for part in (coarse.shown, coarse.anatomy, coarse.array))
