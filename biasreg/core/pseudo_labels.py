"""The records of label maps that a segmentation tool made or completed, and whether these still fit their case."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from biasreg.core.dataset import Case
from biasreg.core.errors import RecordError
from biasreg.core.image_io import image_files
from biasreg.core.serialization import file_hash, read_record

PSEUDO_LABELS_SCHEMA_VERSION = 1

Origin = Literal["manual", "pseudo", "excluded"]


@dataclass(frozen=True)
class LabelRecord:
    """What became of one label of a case.

    Attributes:
        name: Name in `dataset.json`.
        value: Its value in the label map.
        classes: Classes of the segmenter that it is made of.
        origin: Drawn by hand and kept, taken from the segmenter, or found by it and left out.
        reason: Why it was left out.
        voxels: Voxels that the segmenter gives it, those that other labels occupy left out.
        volume_mm3: Their volume.
        pieces: Connected parts (by faces, edges and corners) that they form.
        main_share: Share of them in the largest parts, two for each class; 0 to 1.
        border_share: Share of them in the outermost layer of the grid; 0 to 1.
        covered_share: Share of what the segmenter found that lies on labels drawn by hand; 0 to 1.
        manual_dice: Overlap with the label drawn by hand, 0 to 1; None where there is none.
    """

    name: str
    value: int
    classes: tuple[str, ...]
    origin: Origin
    reason: str | None
    voxels: int
    volume_mm3: float
    pieces: int
    main_share: float
    border_share: float
    covered_share: float
    manual_dice: float | None


@dataclass(frozen=True)
class SegmenterRecord:
    """What segmented a case.

    Attributes:
        name: The program, or the kind of source.
        version: Its version.
        task: What it was asked for: a task of TotalSegmentator, or the folder that label maps were taken from.
        settings: Whatever else decides the result.
    """

    name: str
    version: str
    task: str
    settings: dict[str, str]


@dataclass(frozen=True)
class PseudoLabelRecord:
    """Where the pseudo-labels of a case come from; it is written last, so that it marks them as complete.

    Attributes:
        schema_version: Version of this record.
        case: Case identifier.
        written: When, in UTC (ISO 8601).
        segmenter: What segmented the image.
        weights: SHA-256 of each of its checkpoints, by name.
        device: What it ran on.
        versions: Version of biasreg and Python.
        seconds: Wall time of the segmentation.
        inputs: SHA-256 of what the map was made from: `image`, `manual` (the label map drawn by hand), `source` (the
            other program's label map).
        map_hash: SHA-256 of the map as it was written; None if nothing was added, so that there is no map.
        labels: What became of each label that the segmenter knows.
        notices: What a user should know about this case.
    """

    schema_version: int
    case: str
    written: str
    segmenter: SegmenterRecord
    weights: dict[str, str]
    device: str
    versions: dict[str, str]
    seconds: float
    inputs: dict[str, str]
    map_hash: str | None
    labels: tuple[LabelRecord, ...]
    notices: tuple[str, ...]


def image_hash(path: Path) -> str:
    """Hash an image, the file of its voxels included where that lies apart.

    Args:
        path: The image.

    Returns:
        SHA-256, hex, of each of its files.
    """
    return " ".join(file_hash(file) for file in image_files(path))


def input_hashes(case: Case, source: Path | None = None) -> dict[str, str]:
    """Hash what pseudo-labels are made from.

    Args:
        case: The case.
        source: The label map of another program, if they are taken from one.

    Returns:
        Hashes as `PseudoLabelRecord.inputs` has them.
    """
    files = {"image": case.images[0], "manual": case.manual_labels, "source": source}
    return {role: image_hash(path) for role, path in files.items() if path is not None}


def stale_faults(case: Case, label_table: Mapping[str, int]) -> list[str]:
    """Find out whether a case's pseudo-labels were made from other files, or for another label table, than there are.

    The other program's label map is not looked at: it may be deleted once it was used.

    Args:
        case: The case.
        label_table: Value of each label by name, as `dataset.json` says.

    Returns:
        One line for each fault; empty if the case has no pseudo-labels, or they fit.
    """
    if case.pseudo is None or case.labels is None:
        return []
    remedy = (
        f"run `biasreg_pseudo_label -d {case.images[0].parent.parent.name}` with the options that they were made with"
        f" (see {case.pseudo.record.name}), or delete {case.pseudo.record}"
    )
    try:
        record = read_record(case.pseudo.record, PseudoLabelRecord)
    except RecordError as error:
        return [f"case {case.identifier}: {' '.join(str(error).split())}; {remedy}"]
    current = input_hashes(case)
    files = {"image": case.images[0], "manual": case.manual_labels or "labelsTr (the map is no longer there)"}
    changed = [str(files[role]) for role in files if record.inputs.get(role) != current.get(role)]
    changed += [
        f"the value of '{label.name}' in dataset.json ({label.value} before, {label_table.get(label.name)} now)"
        for label in record.labels
        if label.origin == "pseudo" and label_table.get(label.name) != label.value
    ]
    return [f"case {case.identifier}: {what} has changed since {case.labels} was made; {remedy}" for what in changed]
