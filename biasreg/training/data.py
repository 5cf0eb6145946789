"""Batches of training pairs, made in background processes.

Batch k is a pure function of (seed, k): neither the number of workers nor an interruption changes it, so that a resumed
run needs nothing but its iteration number. Worker w of n makes the batches start + w, start + w + n, ...; one queue
per worker, read in turn, puts them back in order.
"""

import functools
import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from batchgenerators.dataloading.data_loader import SlimDataLoaderBase
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgenerators.transforms.abstract_transforms import Compose
from batchgenerators.transforms.color_transforms import (
    BrightnessMultiplicativeTransform,
    ContrastAugmentationTransform,
    GammaTransform,
)
from batchgenerators.transforms.noise_transforms import GaussianBlurTransform, GaussianNoiseTransform

from biasreg.core.errors import BiasregError, TrainingError
from biasreg.losses.objective import PairBatch
from biasreg.preprocessing.storage import load_image, load_labels, load_mask
from biasreg.training.sampling import Pair, PairSampler

# Half of nnU-Net's ranges: its images have unit variance, ours lie in [0, 1] and must stay comparable to each other.
NOISE_STD = (0.0, 0.05)
BLUR_SIGMA_VOXELS = (0.3, 0.8)
BRIGHTNESS_FACTOR = (0.85, 1.15)
CONTRAST_FACTOR = (0.85, 1.15)
GAMMA = (0.8, 1.25)

CACHED_BATCHES_PER_WORKER = 2


class HostBatch(NamedTuple):
    """A batch of pairs in main memory.

    Attributes:
        moving: Moving images (B, C, X, Y, Z), float32 in [0, 1].
        fixed: Fixed images, same shape.
        moving_labels: Classes (B, 1, X, Y, Z), integer; 0 where a case has no labels.
        fixed_labels: Classes of the fixed images.
        moving_annotated: Which moving cases have labels (B,), bool.
        fixed_annotated: Which fixed cases have labels (B,), bool.
        moving_mask: Where the moving images have values (B, 1, X, Y, Z), uint8.
        fixed_mask: The same of the fixed images.
        pairs: (moving, fixed) case identifiers.
    """

    moving: np.ndarray
    fixed: np.ndarray
    moving_labels: np.ndarray
    fixed_labels: np.ndarray
    moving_annotated: np.ndarray
    fixed_annotated: np.ndarray
    moving_mask: np.ndarray
    fixed_mask: np.ndarray
    pairs: tuple[Pair, ...]


class _Failure(NamedTuple):
    """What a worker sends in place of a batch that it could not make."""

    message: str


@dataclass(frozen=True)
class CaseSource:
    """Where preprocessed cases are read from.

    Attributes:
        folder: Folder of the preprocessed cases of one configuration.
        annotated: Whether each case has labels.
    """

    folder: Path
    annotated: Mapping[str, bool]

    def image(self, case: str) -> np.ndarray:
        """Read an image as float32 (C, X, Y, Z), in [0, 1]."""
        return np.array(load_image(self.folder, case), dtype=np.float32)

    def labels(self, case: str) -> np.ndarray:
        """Read the classes (1, X, Y, Z) of a case, uint8 or int32 (torch has no arithmetic for uint16)."""
        labels = load_labels(self.folder, case)
        return np.array(labels, dtype=np.uint8 if labels.dtype == np.uint8 else np.int32)[None]

    def mask(self, case: str) -> np.ndarray:
        """Read where an image has values, uint8 (1, X, Y, Z)."""
        return np.array(load_mask(self.folder, case))[None]

    def batch(self, pairs: tuple[Pair, ...]) -> HostBatch:
        """Read pairs, without augmentation."""
        moving, fixed = zip(*pairs, strict=True)
        return HostBatch(
            moving=np.stack([self.image(case) for case in moving]),
            fixed=np.stack([self.image(case) for case in fixed]),
            moving_labels=np.stack([self.labels(case) for case in moving]),
            fixed_labels=np.stack([self.labels(case) for case in fixed]),
            moving_annotated=np.array([self.annotated[case] for case in moving]),
            fixed_annotated=np.array([self.annotated[case] for case in fixed]),
            moving_mask=np.stack([self.mask(case) for case in moving]),
            fixed_mask=np.stack([self.mask(case) for case in fixed]),
            pairs=pairs,
        )


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are made.

    Attributes:
        batch_size: Pairs per batch.
        seed: Seed of the run, not negative.
        probability: Probability of each intensity transform.
        workers: Background processes; 0 makes each batch when it is asked for.
    """

    batch_size: int
    seed: int
    probability: float
    workers: int


def default_workers() -> int:
    """Return how many workers feed one device: half of the usable cores, between 1 and 6."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(6, max(1, cores // 2))


def make_batch(source: CaseSource, sampler: PairSampler, settings: LoaderSettings, index: int) -> HostBatch:
    """Make batch `index`, a pure function of the settings and the index.

    Args:
        source: Where cases are read from.
        sampler: Draws the pairs.
        settings: Batch size, seed and strength.
        index: Number of the batch since the run's beginning.

    Returns:
        The batch, its moving and fixed images augmented in intensity independently of each other.
    """
    rng = np.random.default_rng([settings.seed, index])
    batch = source.batch(tuple(sampler.draw(rng) for _ in range(settings.batch_size)))
    images = np.concatenate([batch.moving, batch.fixed])  # (2B, C, X, Y, Z): each image is a sample of its own
    with _seeded_globals(rng):
        images = _intensity_transforms(settings.probability)(data=images)["data"]
    moving, fixed = np.split(np.clip(images, 0, 1).astype(np.float32, copy=False), 2)
    return batch._replace(moving=moving, fixed=fixed)


def to_device(batch: HostBatch, device: torch.device) -> PairBatch:
    """Move a batch to the training device; labels become int64."""

    def move(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    return PairBatch(
        moving=move(batch.moving),
        fixed=move(batch.fixed),
        moving_labels=move(batch.moving_labels).long(),
        fixed_labels=move(batch.fixed_labels).long(),
        moving_annotated=move(batch.moving_annotated),
        fixed_annotated=move(batch.fixed_annotated),
        moving_mask=move(batch.moving_mask).float(),
        fixed_mask=move(batch.fixed_mask).float(),
    )


@contextmanager
def open_batches(
    source: CaseSource, sampler: PairSampler, settings: LoaderSettings, start: int
) -> Iterator[Iterator[HostBatch]]:
    """Give the endless stream of batches `start`, `start` + 1, ...; workers end with the context.

    Args:
        source: Where cases are read from.
        sampler: Draws the pairs.
        settings: Batch size, seed, strength and number of workers.
        start: Number of the first batch.

    Yields:
        An iterator over batches.

    Raises:
        TrainingError: From the iterator, if a batch cannot be made or a worker dies.
    """
    make = functools.partial(make_batch, source, sampler, settings)
    if settings.workers == 0:
        yield _checked(SingleThreadedAugmenter(_PairLoader(make, settings.batch_size, start, 1), None))
        return
    loader = _PairLoader(make, settings.batch_size, start, settings.workers)
    augmenter = MultiThreadedAugmenter(loader, None, settings.workers, CACHED_BATCHES_PER_WORKER)
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of any fork beside threads. The workers use NumPy only, and wait for no lock of torch.
            warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
            augmenter.restart()
        yield _checked(augmenter)
    finally:
        augmenter._finish()


class _PairLoader(SlimDataLoaderBase):
    """Makes every n-th batch, beginning with that of its worker number."""

    def __init__(self, make: "functools.partial[HostBatch]", batch_size: int, start: int, workers: int) -> None:
        super().__init__(make, batch_size, workers)
        self._next = start

    def set_thread_id(self, thread_id: int) -> None:
        """Prepare a worker process; batchgenerators calls this first thing in it."""
        super().set_thread_id(thread_id)
        self._next += thread_id
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, but the trainer decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        torch.set_num_threads(1)
        threading.Thread(target=_die_with_parent, daemon=True).start()

    def generate_train_batch(self) -> HostBatch | _Failure:
        """Make the next batch; a failure is sent as a message, since an exception would only be printed."""
        index = self._next
        self._next += self.number_of_threads_in_multithreaded
        try:
            batch: HostBatch = self._data(index)
        except BiasregError as error:
            return _Failure(str(error))
        except Exception:
            return _Failure(f"batch {index} could not be made\n{traceback.format_exc()}")
        return batch


def _die_with_parent() -> None:
    """End this worker when the training process is gone, however it ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _checked(augmenter: SingleThreadedAugmenter | MultiThreadedAugmenter) -> Iterator[HostBatch]:
    while True:
        try:
            item = next(augmenter)
        except RuntimeError as error:
            raise TrainingError(
                f"a background worker that loads training data died ({error}) · most often the system ended it for "
                "want of main memory · use fewer workers (--num_workers 0 uses none), then resume with --c"
            ) from error
        if isinstance(item, _Failure):
            raise TrainingError(item.message)
        yield item


@contextmanager
def _seeded_globals(rng: np.random.Generator) -> Iterator[None]:
    """Seed the global generators that batchgenerators draws from, and restore them afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(rng.integers(2**32, size=4, dtype=np.uint32))
    random.seed(int(rng.integers(2**63)))
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _intensity_transforms(probability: float) -> Compose:
    return Compose(
        [
            GaussianNoiseTransform(NOISE_STD, p_per_sample=probability),
            GaussianBlurTransform(BLUR_SIGMA_VOXELS, p_per_sample=probability),
            BrightnessMultiplicativeTransform(BRIGHTNESS_FACTOR, p_per_sample=probability),
            ContrastAugmentationTransform(CONTRAST_FACTOR, p_per_sample=probability),
            GammaTransform(GAMMA, per_channel=True, p_per_sample=probability),
        ]
    )
