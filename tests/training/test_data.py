import pickle
import random

import numpy as np
import torch

from biasreg.training.data import CaseSource, LoaderSettings, make_batch, to_device
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


def test_the_stream_pickles(source, sampler):
    assert pickle.loads(pickle.dumps((source, sampler)))[1].draw(np.random.default_rng(0)) == sampler.draw(
        np.random.default_rng(0)
    )
