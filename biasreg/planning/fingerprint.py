"""The fingerprint: facts about a dataset, and nothing but facts."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np
from tqdm import tqdm

from biasreg.core.dataset import Case, Dataset
from biasreg.core.geometry import Geometry, apply_affine
from biasreg.core.image_io import read_image, read_labels
from biasreg.core.serialization import file_hash
from biasreg.planning.foreground import bounding_box, foreground_mask

FINGERPRINT_SCHEMA_VERSION = 1
ALIGNMENT_SAMPLE = 8  # cases aligned to the reference case: enough to tell a gain of 0.02 Dice from noise
INTENSITY_PERCENTILES = (0.5, 1.0, 50.0, 99.0, 99.5)


@dataclass(frozen=True)
class ChannelStatistics:
    """Intensities of one channel inside the foreground.

    Attributes:
        minimum: Smallest value.
        percentiles: Values at `INTENSITY_PERCENTILES` percent.
        maximum: Largest value.
        mean: Mean.
        std: Standard deviation.
    """

    minimum: float
    percentiles: tuple[float, ...]
    maximum: float
    mean: float
    std: float


@dataclass(frozen=True)
class CaseFingerprint:
    """Facts about one case.

    Attributes:
        identifier: Case identifier.
        subject: Subject of the case.
        modality: Modality of the case.
        geometry: Grid of the image.
        foreground_center: World coordinates (RAS mm) of the centre of the foreground's world-aligned box.
        foreground_extent_mm: Side lengths of that box along the world's x, y, z.
        channels: Intensity statistics per channel.
        label_volumes_mm3: Volume of each label that occurs, by file value (as text); None without a label map.
        source_hash: Hash over the contents of the case's image and label files.
    """

    identifier: str
    subject: str
    modality: str
    geometry: Geometry
    foreground_center: tuple[float, float, float]
    foreground_extent_mm: tuple[float, float, float]
    channels: tuple[ChannelStatistics, ...]
    label_volumes_mm3: dict[str, float] | None
    source_hash: str


@dataclass(frozen=True)
class AlignmentScores:
    """How well one case lies on the reference case under each way of pre-alignment.

    Scores are the mean Dice of the labels that both show, or, without labels, the correlation of the intensities.

    Attributes:
        case: The case that was aligned.
        none: Score in world coordinates as the headers state them.
        center: Score with the centres of the foreground boxes on each other.
        affine: Score after affine registration.
    """

    case: str
    none: float
    center: float
    affine: float


@dataclass(frozen=True)
class Fingerprint:
    """Facts about a dataset.

    Attributes:
        schema_version: Version of this record's layout.
        dataset_name: Full dataset name.
        reference_case: The case whose foreground extents are closest to the median.
        cases: Facts per training case, sorted by identifier.
        alignment: Scores of a deterministic sample of cases against the reference case.
    """

    schema_version: int
    dataset_name: str
    reference_case: str
    cases: tuple[CaseFingerprint, ...]
    alignment: tuple[AlignmentScores, ...]


AlignmentMeasure = Callable[[Case, Case], AlignmentScores]


def extract_fingerprint(dataset: Dataset, measure_alignment: AlignmentMeasure, executor: Executor) -> Fingerprint:
    """State the facts about a dataset's training cases.

    Args:
        dataset: The raw dataset.
        measure_alignment: Scores a case (second argument) against the reference case (first).
        executor: Where the cases are read.

    Returns:
        The fingerprint; the same files give the same record.
    """
    cases = dataset.cases("Tr")
    describe = partial(describe_case, label_values=dataset.label_values)
    facts = tuple(tqdm(executor.map(describe, cases), total=len(cases), desc="fingerprint", disable=None))
    by_identifier = {case.identifier: case for case in cases}
    reference = choose_reference(facts)
    sample = alignment_sample([case for case in cases if case.identifier != reference])
    measure = partial(measure_alignment, by_identifier[reference])
    scores = tuple(tqdm(executor.map(measure, sample), total=len(sample), desc="alignment sample", disable=None))
    return Fingerprint(FINGERPRINT_SCHEMA_VERSION, dataset.full_name, reference, facts, scores)


def describe_case(case: Case, label_values: Sequence[int]) -> CaseFingerprint:
    """Read one case and state its facts.

    Args:
        case: The case.
        label_values: Foreground values of the dataset.

    Returns:
        The facts about the case.
    """
    channels = [read_image(path) for path in case.images]
    geometry = channels[0].geometry
    mask = foreground_mask(channels[0].array, case.modality)
    center, extent = world_box(geometry, bounding_box(mask))
    return CaseFingerprint(
        identifier=case.identifier,
        subject=case.subject,
        modality=case.modality,
        geometry=geometry,
        foreground_center=center,
        foreground_extent_mm=extent,
        channels=tuple(_channel_statistics(image.array[mask]) for image in channels),
        label_volumes_mm3=_label_volumes(case, label_values),
        source_hash=source_hash(case),
    )


def world_box(
    geometry: Geometry, box: Sequence[tuple[int, int]]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Find the world-aligned box around an index box.

    Args:
        geometry: The grid.
        box: Half-open index range per axis; voxels count with their whole volume.

    Returns:
        Centre (RAS mm) and side lengths (mm) along the world's axes.
    """
    edges = [(start - 0.5, stop - 0.5) for start, stop in box]
    corners = np.stack(np.meshgrid(*edges, indexing="ij"), axis=-1).reshape(-1, 3)
    world = apply_affine(geometry.affine, corners)
    low, high = world.min(axis=0), world.max(axis=0)
    return _triple((low + high) / 2), _triple(high - low)


def choose_reference(cases: Sequence[CaseFingerprint]) -> str:
    """Choose the case whose foreground extents are closest (in log scale) to the median of all.

    Args:
        cases: Facts per case.

    Returns:
        Its identifier; the first in alphabetical order when several are equally close.
    """
    extents = np.log([case.foreground_extent_mm for case in cases])
    distance = np.abs(extents - np.median(extents, axis=0)).sum(axis=1).round(6)
    return min(zip(distance, (case.identifier for case in cases), strict=True))[1]


def alignment_sample(cases: Sequence[Case]) -> list[Case]:
    """Choose evenly spaced cases for the alignment sample, those with labels first.

    Args:
        cases: Cases without the reference.

    Returns:
        At most `ALIGNMENT_SAMPLE` cases.
    """
    pool = [case for case in cases if case.labels] or list(cases)
    indices = np.unique(np.linspace(0, len(pool) - 1, min(ALIGNMENT_SAMPLE, len(pool))).round().astype(int))
    return [pool[index] for index in indices]


def source_hash(case: Case) -> str:
    """Hash the contents of a case's files, so that a changed file is noticed.

    Args:
        case: The case.

    Returns:
        Hashes of images, labels and mask, joined.
    """
    files = [*case.images, *(path for path in (case.labels, case.mask) if path)]
    return "-".join(file_hash(path)[:16] for path in files)


def _channel_statistics(values: np.ndarray) -> ChannelStatistics:
    values = values.astype(np.float64)
    return ChannelStatistics(
        minimum=float(values.min()),
        percentiles=tuple(float(value) for value in np.percentile(values, INTENSITY_PERCENTILES)),
        maximum=float(values.max()),
        mean=float(values.mean()),
        std=float(values.std()),
    )


def _label_volumes(case: Case, label_values: Sequence[int]) -> dict[str, float] | None:
    if case.labels is None:
        return None
    labels = read_labels(case.labels)
    counts = np.bincount(labels.array.ravel(), minlength=max(label_values, default=0) + 1)
    voxel_mm3 = float(np.prod(labels.geometry.spacing))
    return {str(value): float(counts[value] * voxel_mm3) for value in label_values if counts[value]}


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z
