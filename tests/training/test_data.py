import pickle
import random

import numpy as np
import torch

from biasreg.core.geometry import Geometry
from biasreg.preprocessing.storage import EXCLUDED, INSIDE, OUTSIDE
from biasreg.training.data import CaseSource, LoaderSettings, Regrid, make_batch, to_device
from biasreg.training.sampling import PairSampler


def test_images_stay_in_range_and_labels_are_untouched(source, sampler):
    batch = make_batch(source, sampler, LoaderSettings(4, 0, 1.0, 0), 0)
    assert batch.moving.dtype == batch.fixed.dtype == np.float32
    assert batch.moving.shape == (4, 1, 16, 16, 16)
    assert 0 <= batch.moving.min() < batch.moving.max() <= 1
    for (moving, fixed), labels, fixed_labels in zip(batch.pairs, batch.moving_labels, batch.fixed_labels, strict=True):
        np.testing.assert_array_equal(labels, source.labels(moving))
        np.testing.assert_array_equal(fixed_labels, source.labels(fixed))


def test_moving_and_fixed_are_augmented_independently(source):
    source = CaseSource(source.folder, source.annotated)
    sampler = PairSampler({"case0": "a", "case1": "b"}, "inter-subject")
    batch = make_batch(source, sampler, LoaderSettings(1, 0, 1.0, 0), 0)
    moving, fixed = batch.pairs[0]
    change = batch.moving[0] - source.image(moving), batch.fixed[0] - source.image(fixed)
    assert abs(change[0]).max() > 0.01
    assert abs(np.corrcoef(change[0].ravel(), change[1].ravel())[0, 1]) < 0.9
    assert abs(change[0].mean() - change[1].mean()) > 1e-4


def test_no_augmentation_gives_the_stored_images(source, sampler):
    batch = make_batch(source, sampler, LoaderSettings(1, 0, 0.0, 0), 0)
    np.testing.assert_array_equal(batch.moving[0], source.image(batch.pairs[0][0]))


def test_global_random_states_are_left_alone(source, sampler):
    np.random.seed(5)
    random.seed(5)
    make_batch(source, sampler, LoaderSettings(1, 0, 1.0, 0), 0)
    after = np.random.random(), random.random()
    np.random.seed(5)
    random.seed(5)
    assert after == (np.random.random(), random.random())


def test_annotation_follows_the_case(source):
    sampler = PairSampler({"case4": "a", "case5": "b"}, "inter-subject")
    batch = make_batch(source, sampler, LoaderSettings(8, 0, 0.0, 0), 0)
    assert batch.moving_annotated.tolist() == [moving != "case5" for moving, _ in batch.pairs]
    on_device = to_device(batch, torch.device("cpu"))
    assert on_device.moving_labels.dtype == torch.int64
    assert on_device.fixed_annotated.dtype == torch.bool


def test_a_mask_tells_what_is_visible_from_what_counts(source, sampler):
    batch = make_batch(source, sampler, LoaderSettings(1, 0, 0.0, 0), 0)
    mask = np.zeros_like(batch.moving_mask)
    mask[:, :, 4:8], mask[:, :, 8:] = INSIDE, EXCLUDED
    on_device = to_device(batch._replace(moving_mask=mask, fixed_mask=mask[:, :, ::-1].copy()), torch.device("cpu"))
    for visible, counts in (
        (on_device.moving_visible, on_device.moving_mask),
        (on_device.fixed_visible.flip(2), on_device.fixed_mask.flip(2)),
    ):
        np.testing.assert_array_equal(visible.numpy(), mask != OUTSIDE)
        np.testing.assert_array_equal((visible * counts).numpy(), mask == INSIDE)


def test_the_stream_pickles(source, sampler):
    assert pickle.loads(pickle.dumps((source, sampler)))[1].draw(np.random.default_rng(0)) == sampler.draw(
        np.random.default_rng(0)
    )


def test_a_change_of_grid_keeps_places_and_invents_no_class():
    source, target = Geometry.centered((16, 16, 16), (1.0, 1.0, 1.0)), Geometry.centered((8, 8, 8), (2.0, 2.0, 2.0))
    regrid = Regrid(source, target)
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[4:12, :8] = 7
    labels[4:12, 8:] = 3
    expected = np.zeros((8, 8, 8), np.uint8)
    expected[2:6, :4] = 7
    expected[2:6, 4:] = 3
    assert np.array_equal(regrid.classes(labels), expected)
    assert regrid.classes(labels).dtype == np.uint8
    ramp = np.broadcast_to(np.linspace(0, 1, 16, dtype=np.float32)[:, None, None], (16, 16, 16))[None]
    coarse = regrid.image(ramp)
    assert coarse.shape == (1, 8, 8, 8)
    np.testing.assert_allclose(coarse[0, 1:-1, 4, 4], ramp[0].reshape(8, 2, 16, 16).mean(axis=1)[1:-1, 8, 8], atol=0.01)
