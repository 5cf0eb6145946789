"""The fingerprint: facts about a dataset, and nothing but facts."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np

from biasreg.core.dataset import Case, Dataset
from biasreg.core.dataset_json import DatasetJson
from biasreg.core.geometry import Geometry, world_box
from biasreg.core.image_io import image_files, read_channels, read_labels
from biasreg.core.parallel import map_cases
from biasreg.core.serialization import content_hash, file_hash
from biasreg.planning.foreground import bounding_box, common_modality, foreground_mask

FINGERPRINT_SCHEMA_VERSION = 2
ALIGNMENT_SAMPLE = 8  # pairs that are aligned: enough to tell a gain of 0.02 Dice from noise
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
        source_hash: Hashes over the contents of the case's image, label and mask files.
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
    """How well one case lies on another one when both are in their frames, under each way of pre-alignment.

    Scores are the mean Dice of the labels that both show, or, without labels, how well the intensities of one tell
    those of the other. All are from 0 to 1.

    Attributes:
        case: The moving case.
        none: Score in world coordinates as the headers state them.
        center: Score with the centres of the foreground boxes on each other.
        affine: Score after each was registered to the reference case by an affine map; None within subjects.
        reference: The fixed case: the reference case itself, within subjects one of the same subject, or the fixed case
            of a listed pair.
        focus: Score with affine maps that are refined for what the reference case's labels show; None without those.
    """

    case: str
    none: float
    center: float
    affine: float | None
    reference: str = ""
    focus: float | None = None


@dataclass(frozen=True)
class Fingerprint:
    """Facts about a dataset.

    Attributes:
        schema_version: Version of this record's layout.
        dataset_name: Full dataset name.
        reference_case: The case whose foreground extents are closest to the median; one with labels if there are any.
        cases: Facts per training case, sorted by identifier.
        alignment: Scores of a deterministic sample of pairs.
        dataset_hash: Content hash of what `dataset.json` says about channels, labels, pairing, listed pairs, subjects
            and modalities.
    """

    schema_version: int
    dataset_name: str
    reference_case: str
    cases: tuple[CaseFingerprint, ...]
    alignment: tuple[AlignmentScores, ...]
    dataset_hash: str = ""


AlignmentMeasure = Callable[[Case, Case, Case | None], AlignmentScores]


def extract_fingerprint(dataset: Dataset, measure_alignment: AlignmentMeasure, executor: Executor) -> Fingerprint:
    """State the facts about a dataset's training cases.

    Args:
        dataset: The raw dataset.
        measure_alignment: Scores a fixed case, a moving one, and the reference case that affine maps lead to, if any.
        executor: Where the cases are read.

    Returns:
        The fingerprint; the same files give the same record.
    """
    cases = {case.identifier: case for case in dataset.cases("Tr")}
    modality = common_modality(case.modality for case in cases.values())
    arguments = {name: (case, dataset.label_values, modality) for name, case in cases.items()}
    facts = tuple(map_cases(describe_case, arguments, executor, "fingerprint").values())
    reference = choose_reference(facts)
    # Later steps see any image as one of the common modality; so must the measurement of what they do.
    seen = [replace(case, modality=modality) for case in cases.values()]
    # Images of one subject are never registered to a reference: they get no affine map.
    hub = None if dataset.json.pairing == "intra-subject" else next(c for c in seen if c.identifier == reference)
    pairs = sample_pairs(seen, reference, dataset.json)
    sample = {f"{moving.identifier} on {fixed.identifier}": (fixed, moving, hub) for fixed, moving in pairs}
    scores = tuple(map_cases(measure_alignment, sample, executor, "alignment sample").values())
    return Fingerprint(
        schema_version=FINGERPRINT_SCHEMA_VERSION,
        dataset_name=dataset.full_name,
        reference_case=reference,
        cases=facts,
        alignment=scores,
        dataset_hash=dataset_hash(dataset.json),
    )


def dataset_hash(json: DatasetJson) -> str:
    """Hash what the fingerprint and the plans take from `dataset.json`, so that a change of it is noticed.

    Args:
        json: The contents of `dataset.json`.

    Returns:
        SHA-256, hex. Test pairs and descriptions do not enter it, and pairs only where they alone are trained on.
    """
    pairs = json.pairs if json.pairing == "listed" else ()
    return content_hash(replace(json, name="", pairs=pairs, test_pairs=(), licence="", reference="", description=""))


def describe_case(case: Case, label_values: Sequence[int], modality: str | None = None) -> CaseFingerprint:
    """Read one case and state its facts.

    Args:
        case: The case.
        label_values: Foreground values of the dataset.
        modality: Modality that the foreground is detected by; that of the case when None.

    Returns:
        The facts about the case.
    """
    channels = read_channels(case.images)
    geometry = channels[0].geometry
    mask = foreground_mask(channels[0].array, modality or case.modality)
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


def choose_reference(cases: Sequence[CaseFingerprint]) -> str:
    """Choose the case whose foreground extents are closest (in log scale) to the median of all.

    Args:
        cases: Facts per case.

    Returns:
        Its identifier; the first in alphabetical order when several are equally close. Cases with labels are preferred,
        because alignment to them can be measured by labels.
    """
    extents = np.log([case.foreground_extent_mm for case in cases])
    distance = np.abs(extents - np.median(extents, axis=0)).sum(axis=1).round(6)
    unlabelled = [not case.label_volumes_mm3 for case in cases]
    return min(zip(unlabelled, distance, (case.identifier for case in cases), strict=True))[2]


def sample_pairs(cases: Sequence[Case], reference: str, json: DatasetJson) -> list[tuple[Case, Case]]:
    """Choose the pairs that alignment is measured on, evenly spaced, those with labels first.

    Args:
        cases: All cases.
        reference: Identifier of the reference case.
        json: Says which pairs make sense.

    Returns:
        At most `ALIGNMENT_SAMPLE` pairs (fixed, moving): listed pairs where the dataset trains on them alone;
        within subjects each of a case with the first one of its subject; else of a case with the reference case.
    """
    by_name = {case.identifier: case for case in cases}
    if json.pairing == "listed":
        pairs = [(by_name[pair.fixed], by_name[pair.moving]) for pair in json.pairs]
    else:
        first: dict[str, Case] = {}
        for case in cases:
            first.setdefault(case.subject, case if json.pairing == "intra-subject" else by_name[reference])
        pairs = [(first[case.subject], case) for case in cases if case is not first[case.subject]]
    pool = [pair for pair in pairs if pair[0].labels and pair[1].labels] or pairs
    indices = np.unique(np.linspace(0, len(pool) - 1, min(ALIGNMENT_SAMPLE, len(pool))).round().astype(int))
    return [pool[index] for index in indices]


def source_hash(case: Case) -> str:
    """Hash the contents of a case's files, so that a changed, new or missing file is noticed.

    Args:
        case: The case.

    Returns:
        The start of the SHA-256 of each file, each kind of files under its name.
    """
    kinds = {"images": case.images, "labels": (case.labels,), "mask": (case.mask,)}
    files = {kind: [file for path in paths if path for file in image_files(path)] for kind, paths in kinds.items()}
    hashes = {kind: [file_hash(file)[:16] for file in found] for kind, found in files.items()}
    return " ".join(f"{kind}:{','.join(found)}" for kind, found in hashes.items() if found)


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
    present, counts = np.unique(labels.array, return_counts=True)
    voxel_mm3 = float(np.prod(labels.geometry.spacing))
    volumes = {int(value): float(count * voxel_mm3) for value, count in zip(present, counts, strict=True)}
    return {str(value): volumes[value] for value in label_values if value in volumes}
