"""The pseudo-labels of a case on disk: whether they can stay, and whether somebody has corrected them since."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from biasreg.core.dataset import PSEUDO_LABELS_FOLDER, Case, Dataset
from biasreg.core.errors import InputError, RecordError
from biasreg.core.pseudo_labels import PSEUDO_LABELS_SCHEMA_VERSION, PseudoLabelRecord, image_hash, input_hashes
from biasreg.core.serialization import read_record
from biasreg.preprocessing.segmenter_choice import Assignment


@dataclass(frozen=True)
class PseudoLabelFiles:
    """Where the pseudo-labels of a case lie.

    Attributes:
        map: The completed label map; there is none where nothing was added.
        record: Its record.
    """

    map: Path
    record: Path

    @classmethod
    def of(cls, dataset: Dataset, case: Case) -> "PseudoLabelFiles":
        """Return the files of a case, whether or not they exist."""
        folder = dataset.folder / PSEUDO_LABELS_FOLDER
        return cls(folder / f"{case.identifier}{dataset.json.file_ending}", folder / f"{case.identifier}.json")

    def read(self) -> PseudoLabelRecord:
        """Read the record.

        Raises:
            RecordError: It is missing, damaged, or of another version.
        """
        record = read_record(self.record, PseudoLabelRecord)
        if record.schema_version != PSEUDO_LABELS_SCHEMA_VERSION:
            raise RecordError(f"{self.record}: schema {record.schema_version}, not {PSEUDO_LABELS_SCHEMA_VERSION}")
        return record

    def delete(self) -> None:
        """Delete both, the record first, so that a map without one is never taken for complete."""
        self.record.unlink(missing_ok=True)
        self.map.unlink(missing_ok=True)

    def is_corrected(self) -> bool:
        """Tell whether the map is another one than was written; where the record is damaged it is taken for one."""
        if not (self.map.is_file() and self.record.is_file()):
            return False
        try:
            return self.read().map_hash != image_hash(self.map)
        except RecordError:
            return True


def misfit(files: PseudoLabelFiles, case: Case, dataset: Dataset) -> str | None:
    """Say why the pseudo-labels of a case do not fit what the raw dataset holds.

    Args:
        files: Where they are.
        case: The case, its labels those drawn by hand.
        dataset: The raw dataset.

    Returns:
        The reason; None if they fit.
    """
    try:
        record = files.read()
    except RecordError as error:
        return str(error)
    if record.map_hash is not None and not files.map.is_file():
        return f"{files.map.name} is missing"
    current = input_hashes(case)
    if {role: known for role, known in record.inputs.items() if role != "source"} != current:
        return "its image or its map in labelsTr has changed"
    if any(dataset.json.labels.get(label.name) != label.value for label in record.labels):
        return "the values of labels in dataset.json have changed"
    return None


def made_otherwise(files: PseudoLabelFiles, case: Case, assignment: Assignment) -> str | None:
    """Say in what the pseudo-labels of a case were made in another way than is asked for.

    Args:
        files: Where they are; the record can be read.
        case: The case.
        assignment: What is asked for.

    Returns:
        The reason; None if they were made so. Another version of the segmenter is none.
    """
    record = files.read()
    if replace(record.segmenter, version="") != replace(assignment.segmenter.record, version=""):
        settings = " ".join(f"{name}={value}" for name, value in record.segmenter.settings.items())
        return f"it was made by {record.segmenter.name}, {record.segmenter.task} {settings}".strip()
    if {label.name: label.classes for label in record.labels} != {
        label: tuple(classes) for label, classes in assignment.matched.items()
    }:
        return "it was made for other labels, or of other classes"
    source = assignment.segmenter.source(case)
    if record.inputs.get("source") != (None if source is None else image_hash(source)):
        return f"{source} has changed"
    return None


def refuse_corrected(corrected: Sequence[PseudoLabelFiles]) -> None:
    """Refuse to overwrite or delete what somebody has corrected by hand.

    Args:
        corrected: Pseudo-labels that were corrected and would be lost.

    Raises:
        InputError: If there are any.
    """
    if corrected:
        names = ", ".join(files.map.name for files in corrected)
        raise InputError(
            f"pseudo-labels were changed by hand since they were made, and would be lost now: {names} · "
            f"{corrected[0].map.parent} · to keep them move them to labelsTr, to lose them give --clean"
        )
