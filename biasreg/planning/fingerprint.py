"""Extracting the fingerprint: facts about a dataset, and nothing but facts."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import nibabel
import numpy as np

from biasreg.core.dataset import Case, Dataset
from biasreg.core.dataset_json import DatasetJson
from biasreg.core.errors import RecordError
from biasreg.core.geometry import Geometry, mask_box, world_box
from biasreg.core.image_io import image_files, read_channels, read_labels
from biasreg.core.parallel import map_cases
from biasreg.core.points_io import read_points
from biasreg.core.serialization import content_hash, file_hash, from_json, read_json, to_json, write_json
from biasreg.planning.alignment_sample import most_typical, sample_pairs
from biasreg.planning.fingerprint_records import (
    FINGERPRINT_SCHEMA_VERSION,
    INTENSITY_PERCENTILES,
    CaseFingerprint,
    ChannelStatistics,
    Fingerprint,
    PairFingerprint,
    Triple,
)
from biasreg.planning.foreground import common_modality, foreground_mask

Record = TypeVar("Record")
AlignmentMeasure = Callable[[Case, Case, Case | None], PairFingerprint]
ReferenceChooser = Callable[[Sequence[CaseFingerprint], Sequence[Case], Executor], str]


def extract_fingerprint(
    dataset: Dataset,
    measure_alignment: AlignmentMeasure,
    executor: Executor,
    cache: Path | None = None,
    choose: ReferenceChooser = most_typical,
) -> Fingerprint:
    """State the facts about a dataset's training cases.

    Args:
        dataset: The raw dataset.
        measure_alignment: Measures a fixed case, a moving one, and the reference case that affine maps lead to, if any.
        executor: Where the cases are read.
        cache: Folder that keeps what is known of each case and pair, so that an interrupted extraction goes on, and
            after a change only what has changed is looked at; None keeps nothing.
        choose: Chooses the case that all others may be aligned to, from the facts, the cases and the executor.

    Returns:
        The fingerprint; the same files give the same record.
    """
    cases = {case.identifier: case for case in dataset.cases("Tr")}
    modality = common_modality(case.modality for case in cases.values())
    arguments = {name: (case, dataset.label_values, modality, cache) for name, case in cases.items()}
    facts = tuple(map_cases(_recall_case, arguments, executor, "fingerprint").values())
    # Later steps see any image as one of the common modality; so must the measurement of what they do.
    seen = [replace(case, modality=modality) for case in cases.values()]
    # Images of one subject are never registered to a reference: they get no affine map.
    within = dataset.json.pairing == "intra-subject"
    reference = (most_typical if within else choose)(facts, seen, executor)
    hub = None if within else next(case for case in seen if case.identifier == reference)
    pairs = sample_pairs(seen, reference, dataset.json)
    hashes = {case.identifier: case.source_hash for case in facts}
    sample = {}
    for trio in ((fixed, moving, hub) for fixed, moving in pairs):
        key = content_hash([modality, *(f"{case.identifier} {hashes[case.identifier]}" for case in trio if case)])
        sample[f"{trio[1].identifier} on {trio[0].identifier}"] = (measure_alignment, trio, key, cache)
    measured = tuple(map_cases(_recall_pair, sample, executor, "alignment sample").values())
    return Fingerprint(
        schema_version=FINGERPRINT_SCHEMA_VERSION,
        dataset_name=dataset.full_name,
        reference_case=reference,
        cases=facts,
        pairs=measured,
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
    center, extent = mask_box(geometry, mask)
    volumes, label_extent = _describe_labels(case, label_values)
    return CaseFingerprint(
        identifier=case.identifier,
        subject=case.subject,
        modality=case.modality,
        geometry=geometry,
        world_spacing=world_spacing(geometry),
        field_of_view_mm=world_box(geometry, [(0, side) for side in geometry.shape])[1],
        foreground_center=center,
        foreground_extent_mm=extent,
        channels=tuple(channel_statistics(image.array[mask]) for image in channels),
        label_volumes_mm3=volumes,
        label_extent_mm=label_extent,
        landmarks=len(read_points(case.landmarks).names) if case.landmarks else None,
        source_hash=source_hash(case),
    )


def world_spacing(geometry: Geometry) -> Triple:
    """Find a grid's spacing along the world's axes.

    Args:
        geometry: The grid.

    Returns:
        Spacing in mm along x, y, z, each from the array axis that runs along that world axis, or closest to it.
    """
    world_axes = nibabel.io_orientation(geometry.affine)[:, 0]  # of each array axis, no two alike
    x, y, z = (geometry.spacing[axis] for axis in np.argsort(world_axes))
    return x, y, z


def source_hash(case: Case) -> str:
    """Hash the contents of a case's files, so that a changed, new or missing file is noticed.

    The transforms that its frame follows from are among them, and the images of the case that they start from.

    Args:
        case: The case.

    Returns:
        The start of the SHA-256 of each file, each kind of files under its name.
    """
    kinds = {"images": case.images, "labels": (case.labels,), "mask": (case.mask,), "landmarks": (case.landmarks,)}
    if case.pseudo:
        kinds["manual"] = (case.manual_labels,)  # pseudo-labels are made from them, so they are outdated too
    files = {kind: [file for path in paths if path for file in image_files(path)] for kind, paths in kinds.items()}
    hashes = {kind: [file_hash(file)[:16] for file in found] for kind, found in files.items()}
    if case.given:
        hashes["initial"] = [case.given.content_hash[:16]]
    return " ".join(f"{kind}:{','.join(found)}" for kind, found in hashes.items() if found)


def channel_statistics(values: np.ndarray) -> ChannelStatistics:
    """State the facts about the intensities of one channel.

    Args:
        values: (N,) intensities inside the foreground.

    Returns:
        The facts.
    """
    values = values.astype(np.float64)
    return ChannelStatistics(
        minimum=float(values.min()),
        percentiles=tuple(float(value) for value in np.percentile(values, INTENSITY_PERCENTILES)),
        maximum=float(values.max()),
        mean=float(values.mean()),
        std=float(values.std()),
    )


def _describe_labels(case: Case, label_values: Sequence[int]) -> tuple[dict[str, float] | None, Triple | None]:
    """Volumes of the labels in mm³ by file value, and the sides of the box around all of them in mm."""
    if case.labels is None:
        return None, None
    labels = read_labels(case.labels)
    present, counts = np.unique(labels.array, return_counts=True)
    voxel_mm3 = float(np.prod(labels.geometry.spacing))
    volumes = {int(value): float(count * voxel_mm3) for value, count in zip(present, counts, strict=True)}
    known = {str(value): volumes[value] for value in label_values if value in volumes}
    if not known:
        return known, None
    return known, mask_box(labels.geometry, np.isin(labels.array, label_values))[1]


def _recall_case(case: Case, label_values: Sequence[int], modality: str, cache: Path | None) -> CaseFingerprint:
    key = content_hash([source_hash(case), case.subject, case.modality, list(label_values), modality])
    path = cache / f"{case.identifier}.json" if cache else None
    return _recall(path, key, CaseFingerprint, lambda: describe_case(case, label_values, modality))


def _recall_pair(
    measure_alignment: AlignmentMeasure, trio: tuple[Case, Case, Case | None], key: str, cache: Path | None
) -> PairFingerprint:
    path = cache / "pairs" / f"{trio[1].identifier} on {trio[0].identifier}.json" if cache else None
    return _recall(path, key, PairFingerprint, lambda: measure_alignment(*trio))


def _recall(path: Path | None, key: str, cls: type[Record], make: Callable[[], Record]) -> Record:
    """Take a record from its file if that was made of the same facts, else make and write it."""
    if path is None:
        return make()
    key = f"{FINGERPRINT_SCHEMA_VERSION} {key}"
    try:
        known = read_json(path)
        if isinstance(known, dict) and known.get("made_of") == key:
            return from_json(cls, known.get("record"), where=str(path))
    except RecordError:  # missing or damaged
        pass
    record = make()
    write_json(path, {"made_of": key, "record": to_json(record)})
    return record
