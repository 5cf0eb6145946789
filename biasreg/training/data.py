"""Batches of training pairs.

Pair n of a run is a pure function of (seed, n): neither the number of workers or processes nor an interruption changes
it, so that a resumed run needs nothing but its iteration number.
"""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from batchgenerators.transforms.abstract_transforms import Compose
from batchgenerators.transforms.color_transforms import (
    BrightnessMultiplicativeTransform,
    ContrastAugmentationTransform,
    GammaTransform,
)
from batchgenerators.transforms.noise_transforms import GaussianBlurTransform, GaussianNoiseTransform

from biasreg.core.geometry import Geometry
from biasreg.losses.objective import PairBatch
from biasreg.planning.pairing import Pair
from biasreg.preprocessing.resampling import labels_to_canonical, to_canonical
from biasreg.preprocessing.storage import EXCLUDED, OUTSIDE, load_image, load_labels, load_mask
from biasreg.training.sampling import PairSampler

# Half of nnU-Net's ranges: its images have unit variance, ours lie in [0, 1] and must stay comparable to each other.
NOISE_STD = (0.0, 0.05)
BLUR_SIGMA_VOXELS = (0.3, 0.8)
BRIGHTNESS_FACTOR = (0.85, 1.15)
CONTRAST_FACTOR = (0.85, 1.15)
GAMMA = (0.8, 1.25)


class HostBatch(NamedTuple):
    """A batch of pairs in main memory.

    Attributes:
        moving: Moving images (B, C, X, Y, Z), float32 in [0, 1].
        fixed: Fixed images, same shape.
        moving_labels: Classes (B, 1, X, Y, Z), integer; 0 where a case has no labels.
        fixed_labels: Classes of the fixed images.
        moving_annotated: Which moving cases have labels (B,), bool.
        fixed_annotated: Which fixed cases have labels (B,), bool.
        moving_mask: What preprocessing says of the moving images' voxels, (B, 1, X, Y, Z), uint8.
        fixed_mask: The same of the fixed images.
        pairs: (moving, fixed) case identifiers.
        numbers: Number of each pair, counted over all pairs of the run; empty outside of training.
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
    numbers: tuple[int, ...] = ()


class Regrid(NamedTuple):
    """A change of grid around the same centre, in the canonical frame.

    Attributes:
        source: The grid of the stored cases.
        target: The coarser grid that they are trained on.
    """

    source: Geometry
    target: Geometry

    def image(self, image: np.ndarray) -> np.ndarray:
        """Bring (C, X, Y, Z) to (C, X', Y', Z'), float32."""
        return np.stack([to_canonical(channel, *self, np.eye(4), fill=0.0) for channel in image])

    def classes(self, labels: np.ndarray) -> np.ndarray:
        """Bring classes (X, Y, Z) to (X', Y', Z'), inventing none."""
        values = [int(value) for value in np.unique(labels) if value > 0]
        found = labels_to_canonical(labels, *self, np.eye(4), values)
        return np.array([0, *values], dtype=labels.dtype)[found]


@dataclass(frozen=True)
class CaseSource:
    """Where preprocessed cases are read from.

    Attributes:
        folder: Folder of the preprocessed cases of one configuration.
        annotated: Whether each case has labels.
        regrid: Change of grid, where training had to fall back to a coarser one.
    """

    folder: Path
    annotated: Mapping[str, bool]
    regrid: Regrid | None = None

    def image(self, case: str) -> np.ndarray:
        """Read an image as float32 (C, X, Y, Z), in [0, 1]."""
        image = np.array(load_image(self.folder, case), dtype=np.float32)
        return self.regrid.image(image) if self.regrid else image

    def labels(self, case: str) -> np.ndarray:
        """Read the classes (1, X, Y, Z) of a case, uint8 or int32 (torch has no arithmetic for uint16)."""
        labels = load_labels(self.folder, case)
        labels = self.regrid.classes(labels) if self.regrid else labels
        return np.array(labels, dtype=np.uint8 if labels.dtype == np.uint8 else np.int32)[None]

    def mask(self, case: str) -> np.ndarray:
        """Read the mask of a case, uint8 (1, X, Y, Z)."""
        mask = load_mask(self.folder, case)
        return np.array(self.regrid.classes(mask) if self.regrid else mask)[None]

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
        batch_size: Pairs per batch of this process.
        seed: Seed of the run, not negative.
        probability: Probability of each intensity transform.
        workers: Background processes; 0 makes each batch when it is asked for.
        rank: Number of this process among those that train together.
        ranks: How many train together.
    """

    batch_size: int
    seed: int
    probability: float
    workers: int
    rank: int = 0
    ranks: int = 1

    def pair_numbers(self, index: int) -> range:
        """Number the pairs of this process's batch `index`, counted over all pairs of the run."""
        first = (index * self.ranks + self.rank) * self.batch_size
        return range(first, first + self.batch_size)


def make_batch(source: CaseSource, sampler: PairSampler, settings: LoaderSettings, index: int) -> HostBatch:
    """Make batch `index` of this process.

    Args:
        source: Where cases are read from.
        sampler: Draws the pairs.
        settings: Batch size, seed and strength.
        index: Number of the batch since the run's beginning.

    Returns:
        The batch, its moving and fixed images augmented in intensity independently of each other.
    """
    pairs = [_make_pair(source, sampler, settings, number) for number in settings.pair_numbers(index)]
    if len(pairs) == 1:
        return pairs[0]
    arrays = {name: np.concatenate([getattr(pair, name) for pair in pairs]) for name in HostBatch._fields[:-2]}
    names = tuple(name for pair in pairs for name in pair.pairs)
    return HostBatch(**arrays, pairs=names, numbers=tuple(number for pair in pairs for number in pair.numbers))


def _make_pair(source: CaseSource, sampler: PairSampler, settings: LoaderSettings, number: int) -> HostBatch:
    rng = np.random.default_rng([settings.seed, number])
    pair = source.batch((sampler.draw(rng),))
    images = np.concatenate([pair.moving, pair.fixed])  # (2, C, X, Y, Z): each image is a sample of its own
    with _seeded_globals(rng):
        images = _intensity_transforms(settings.probability)(data=images)["data"]
    moving, fixed = np.split(np.clip(images, 0, 1).astype(np.float32, copy=False), 2)
    return pair._replace(moving=moving, fixed=fixed, numbers=(number,))


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
        moving_visible=(move(batch.moving_mask) != OUTSIDE).float(),
        fixed_visible=(move(batch.fixed_mask) != OUTSIDE).float(),
        moving_mask=(move(batch.moving_mask) != EXCLUDED).float(),
        fixed_mask=(move(batch.fixed_mask) != EXCLUDED).float(),
    )


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
