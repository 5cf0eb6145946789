import base64
import gzip
from dataclasses import replace

import numpy as np
import pytest

from biasreg.core.geometry import Geometry
from biasreg.report.packing import DETERMINANT_STEPS, pack_pair
from biasreg.report.volumes import PairVolumes

SHAPE = (20, 16, 12)
RNG = np.random.default_rng(3)


def make_volumes(shape=SHAPE, spacing=(1.0, 2.0, 0.5)) -> PairVolumes:
    labels = np.zeros(shape, dtype=np.int32)
    labels[4:9, 5:9, 3:7] = 70_000
    labels[10:14, 5:9, 3:7] = 2
    images = [RNG.uniform(10, 1000, size=shape).astype(np.float32) for _ in range(3)]
    field = RNG.normal(scale=2, size=(3, *shape)).astype(np.float32)
    determinant = RNG.uniform(0.1, 3, size=shape).astype(np.float32)
    return PairVolumes(Geometry.centered(shape, spacing), *images, field, determinant, labels, labels, labels)


def unpack(packed, name, dtype, shape, components=1):
    (blob,) = (blob for blob in packed.blobs if blob.name == name)
    steps = np.frombuffer(gzip.decompress(base64.b64decode(blob.data)), dtype)
    values = np.cumsum(steps, dtype=steps.dtype)
    return np.stack([part.reshape(shape, order="F") for part in np.split(values, components)])


def test_volumes_that_are_small_enough_keep_every_voxel():
    volumes = make_volumes()
    packed = pack_pair(volumes, 10**6)
    assert (packed.meta["shape"], packed.meta["reduced"], packed.meta["spacing"]) == (list(SHAPE), False, [1, 2, 0.5])
    fixed = unpack(packed, "fixed", np.uint8, SHAPE)[0]
    lower, upper = np.percentile(volumes.fixed, (0.5, 99.5))
    assert np.abs(fixed / 255 * (upper - lower) + lower - np.clip(volumes.fixed, lower, upper)).max() < 3
    labels = unpack(packed, "warped_labels", np.uint8, SHAPE)[0]
    assert packed.meta["labels"] == [2, 70_000]
    assert np.array_equal(np.array([0, *packed.meta["labels"]])[labels], volumes.fixed_labels)


def test_the_field_is_kept_in_mm_to_a_twentieth_of_a_voxel():
    volumes = make_volumes()
    packed = pack_pair(volumes, 10**6)
    field = unpack(packed, "displacement", "<i2", packed.meta["fieldShape"], 3) * packed.meta["fieldStep"]
    expected = volumes.displacement * np.array([1.0, 2.0, 0.5]).reshape(3, 1, 1, 1)
    assert np.abs(field - expected).max() <= 0.5 / 20 / 2 + 1e-6
    assert packed.meta["longest"] == pytest.approx(np.linalg.norm(expected, axis=0).max(), rel=1e-5)


def test_moving_and_warped_image_share_their_window():
    volumes = make_volumes()
    packed = pack_pair(replace(volumes, warped=volumes.moving.copy()), 10**6)
    assert np.array_equal(unpack(packed, "moving", np.uint8, SHAPE), unpack(packed, "warped", np.uint8, SHAPE))


def test_folding_survives_shrinking_and_nothing_else_becomes_folding():
    volumes = make_volumes()
    volumes.determinant[7, 7, 7] = -0.1
    volumes.determinant[3, 3, 3] = np.nan
    packed = pack_pair(volumes, 10**6)
    whole = unpack(packed, "determinant", np.uint8, SHAPE)[0]
    assert sorted(map(tuple, np.argwhere(whole == 0).tolist())) == [(3, 3, 3), (7, 7, 7)]
    known = whole > 0
    seen = (whole[known].astype(float) - 1) / DETERMINANT_STEPS
    assert np.abs(seen - np.clip(volumes.determinant[known], 0, 2)).max() <= 0.51 / DETERMINANT_STEPS
    assert packed.meta["folding"] == pytest.approx(100 * 2 / np.prod(SHAPE))
    small = pack_pair(volumes, 10**6, longest_side=10)
    shrunk = unpack(small, "determinant", np.uint8, small.meta["shape"])[0]
    assert 1 <= (shrunk == 0).sum() <= 2 * 8


@pytest.mark.parametrize(("voxels", "side"), [(500, 128), (10**6, 8), (1, 128)])
def test_large_volumes_shrink_to_the_room_that_they_are_given(voxels, side):
    packed = pack_pair(make_volumes(), voxels, side)
    shape = packed.meta["shape"]
    assert max(shape) <= side
    assert np.prod(shape) <= voxels
    extent = np.array(shape) * packed.meta["spacing"]
    assert extent == pytest.approx(np.array(SHAPE) * [1, 2, 0.5])
    assert packed.meta["reduced"]


def test_thick_slices_are_not_thinned_out():
    packed = pack_pair(make_volumes((40, 40, 6)), 10**6, longest_side=20)
    assert packed.meta["shape"] == [20, 20, 6]


def test_empty_margins_are_cut_off_but_no_label():
    volumes = make_volumes((40, 30, 30))
    empty = np.zeros((40, 30, 30), dtype=np.float32)
    bright = empty.copy()
    bright[18:22, 12:16, 12:16] = 100
    labels = np.zeros((40, 30, 30), dtype=np.uint8)
    labels[10, 14, 14] = 1
    volumes = replace(volumes, fixed=bright, moving=bright, warped=bright)
    volumes = replace(volumes, fixed_labels=labels, moving_labels=labels, warped_labels=labels)
    packed = pack_pair(volumes, 10**6)
    assert packed.meta["shape"] == [(22 + 3) - (10 - 3), (16 + 3) - (12 - 3), (16 + 3) - (12 - 3)]
    assert unpack(packed, "fixed_labels", np.uint8, packed.meta["shape"]).sum() == 1
    assert packed.meta["start"] == [3, 5, 5]


def test_a_constant_pair_without_labels_can_be_packed():
    flat = np.full(SHAPE, 7, dtype=np.float32)
    volumes = replace(make_volumes(), fixed=flat, moving=flat, warped=flat)
    volumes = replace(volumes, displacement=np.zeros((3, *SHAPE), dtype=np.float32))
    packed = pack_pair(replace(volumes, fixed_labels=None, moving_labels=None, warped_labels=None), 10**6)
    assert packed.meta["shape"] == list(SHAPE)
    assert (packed.meta["labels"], packed.meta["start"], packed.meta["longest"]) == ([], [10, 8, 6], 0)
