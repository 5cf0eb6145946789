"""What the training images were like, so that prediction can tell an image that is not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from biasreg.core.image_io import Image
from biasreg.planning.fingerprint import channel_statistics, world_spacing
from biasreg.planning.fingerprint_records import INTENSITY_PERCENTILES, ChannelStatistics, Fingerprint
from biasreg.planning.foreground import foreground_mask
from biasreg.planning.plans import ChannelNormalization, PreprocessingPlans

SPACING_FACTOR = 1.5  # an image may be this much finer or coarser than the finest or coarsest of training
INTENSITY_MARGIN = 0.1  # of the range that becomes [0, 1], beyond the smallest and largest of training
COMPARED_PERCENTILES = (1.0, 50.0, 99.0)

Range = tuple[float, float]


@dataclass(frozen=True)
class DataRanges:
    """Smallest and largest of what the images of a model's dataset show; of no single image.

    Attributes:
        spacing_mm: Voxel size along the world's x, y and z.
        intensities: Per channel, the `COMPARED_PERCENTILES` of the foreground, normalised so that the range which the
            network sees is 0 to 1.
    """

    spacing_mm: tuple[Range, Range, Range]
    intensities: tuple[tuple[Range, ...], ...]


def data_ranges(fingerprint: Fingerprint, plans: PreprocessingPlans) -> DataRanges:
    """Gather what the images of a dataset were like.

    Args:
        fingerprint: Facts about the dataset.
        plans: How intensities are normalised.

    Returns:
        The ranges.
    """
    spacings = np.array([case.world_spacing for case in fingerprint.cases])  # (cases, 3)
    intensities = np.array(
        [
            [_normalised(channel, plan) for channel, plan in zip(case.channels, plans.normalization, strict=True)]
            for case in fingerprint.cases
        ]
    )  # (cases, channels, percentiles)
    x, y, z = _ranges(spacings)
    return DataRanges((x, y, z), tuple(_ranges(intensities[:, channel]) for channel in range(intensities.shape[1])))


def suspicions(name: str, channels: Sequence[Image], ranges: DataRanges, plans: PreprocessingPlans) -> list[str]:
    """Say in what an image is unlike those of training.

    Args:
        name: What it is of the pair.
        channels: The image, one `Image` per channel.
        ranges: What the training images were like.
        plans: How intensities are normalised, and the foreground is detected.

    Returns:
        One sentence per property that is out of range; none for an image like the others.
    """
    return [*_spacing_suspicions(name, channels[0], ranges), *_intensity_suspicions(name, channels, ranges, plans)]


def _spacing_suspicions(name: str, image: Image, ranges: DataRanges) -> Iterator[str]:
    spacing = world_spacing(image.geometry)
    if any(
        not low / SPACING_FACTOR <= step <= high * SPACING_FACTOR
        for step, (low, high) in zip(spacing, ranges.spacing_mm, strict=True)
    ):
        found = "×".join(f"{step:.3g}" for step in spacing)
        known = ", ".join(f"{low:.3g} to {high:.3g}" for low, high in ranges.spacing_mm)
        yield f"the {name} image's voxels measure {found} mm, those of the training images {known} mm along x, y, z"


def _intensity_suspicions(
    name: str, channels: Sequence[Image], ranges: DataRanges, plans: PreprocessingPlans
) -> Iterator[str]:
    mask = foreground_mask(channels[0].array, plans.modality)
    for number, (channel, plan, known) in enumerate(
        zip(channels, plans.normalization, ranges.intensities, strict=True)
    ):
        found = _normalised(channel_statistics(channel.array[mask]), plan)
        for percentile, value, (low, high) in zip(COMPARED_PERCENTILES, found, known, strict=True):
            if not low - INTENSITY_MARGIN <= value <= high + INTENSITY_MARGIN:
                of_channel = f" in channel {number}" if len(channels) > 1 else ""
                yield (
                    f"the {name} image's intensities are unusual{of_channel}: percentile {percentile:g} of its anatomy "
                    f"lies at {value:.2f} of the range that the network sees, in the training images at {low:.2f} to "
                    f"{high:.2f}"
                )
                break  # the others say the same again


def _normalised(statistics: ChannelStatistics, plan: ChannelNormalization) -> list[float]:
    known = dict(zip(INTENSITY_PERCENTILES, statistics.percentiles, strict=True))
    lower, upper = plan.lower, plan.upper
    if plan.scheme == "percentile":
        lower, upper = statistics.percentiles[0], statistics.percentiles[-1]
    width = upper - lower
    return [(known[percentile] - lower) / width if width > 0 else 0.0 for percentile in COMPARED_PERCENTILES]


def _ranges(values: NDArray) -> tuple[Range, ...]:
    """Smallest and largest over the first axis of (cases, N)."""
    return tuple((float(low), float(high)) for low, high in zip(values.min(axis=0), values.max(axis=0), strict=True))
