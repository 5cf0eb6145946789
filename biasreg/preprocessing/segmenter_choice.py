"""Which segmenter serves which case, and which of its classes make which label."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from biasreg.core.dataset import Case, Dataset
from biasreg.core.errors import DatasetError, InputError
from biasreg.preprocessing.label_matching import LabelClasses, match_labels, read_label_map, restrict
from biasreg.preprocessing.segmenters import Segmenter, open_label_folder
from biasreg.preprocessing.totalsegmentator import open_totalsegmentator

logger = logging.getLogger(__name__)

_NAMES_SHOWN = 5

CT_TASK = "total"
MR_TASK = "total_mr"
_MR_WORDS = re.compile(r"(mr|mri|t1|t2|t1w|t2w|t1c|t1ce|t1gd|t2s|pd|pdw|flair|dwi|adc|swi)\b", re.IGNORECASE)


@dataclass(frozen=True)
class SegmenterOptions:
    """What segments, and which of its classes make which label.

    Attributes:
        task: Task of TotalSegmentator; None for the one of each case's modality.
        fast: Take its model of lower resolution.
        device: Device that it runs on; None for the best.
        download: Let it download weights that are missing.
        roi_subset: Classes to restrict it to; those that make a label when empty.
        label_map: JSON of the classes of labels that are not called like their class.
        folder: Folder of label maps by another program, which then serves all cases.
    """

    task: str | None = None
    fast: bool = False
    device: str | None = None
    download: bool = False
    roi_subset: tuple[str, ...] = ()
    label_map: Path | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Assignment:
    """A segmenter, and the classes that it makes each label of."""

    segmenter: Segmenter
    matched: LabelClasses

    @property
    def class_names(self) -> tuple[str, ...]:
        """All classes that are wanted."""
        return tuple(name for classes in self.matched.values() for name in classes)


def assign_segmenters(dataset: Dataset, cases: Sequence[Case], options: SegmenterOptions) -> dict[str, Assignment]:
    """Find the segmenter of each case.

    Args:
        dataset: The raw dataset.
        cases: Its training cases.
        options: What the user asked for.

    Returns:
        By case identifier; cases that a folder has no label map of are left out, and named in a warning.

    Raises:
        InputError: Labels, classes or tasks do not fit, or the segmenter is missing.
    """
    if not dataset.label_names:
        raise DatasetError(f"{dataset.folder}: dataset.json names no labels but the background · name those to be made")
    given = read_label_map(options.label_map) if options.label_map else {}
    tasks = {case.identifier: "" for case in cases} if options.folder else _tasks(cases, options.task)
    by_task: dict[str, Assignment] = {}
    for task in dict.fromkeys(tasks.values()):
        segmenter = _open(task, dataset, options)
        origin = segmenter.record.name + (f" {task}" if task else f" in {options.folder}")
        matched = match_labels(dataset.label_names, segmenter.classes, given, origin)
        by_task[task] = Assignment(segmenter, restrict(matched, options.roi_subset, origin))
        _report(by_task[task], dataset, origin)
    assigned = {name: by_task[task] for name, task in tasks.items()}
    return _covered(assigned, {case.identifier: case for case in cases})


def default_task(modality: str) -> str | None:
    """Choose TotalSegmentator's task for a modality.

    Args:
        modality: As `dataset.json` says: `CT`, `MRI`, `T1w`, …

    Returns:
        The task; None where the modality does not tell.
    """
    if modality.strip().upper() == "CT":
        return CT_TASK
    words = re.sub(r"[_\-\s]+", " ", modality).strip()
    return MR_TASK if _MR_WORDS.match(words) else None


def _tasks(cases: Sequence[Case], task: str | None) -> dict[str, str]:
    if task is not None:
        return {case.identifier: task for case in cases}
    tasks = {case.identifier: default_task(case.modality) for case in cases}
    unclear = sorted({case.modality for case in cases if tasks[case.identifier] is None})
    if unclear:
        raise InputError(
            f"no task of TotalSegmentator is known for the modality {' or '.join(map(repr, unclear))} · give one with"
            " --task, or name the modality CT or MR in channel_names or modalities of dataset.json"
        )
    return {name: found for name, found in tasks.items() if found is not None}


def _open(task: str, dataset: Dataset, options: SegmenterOptions) -> Segmenter:
    if options.folder is not None:
        return open_label_folder(options.folder, dataset.json.file_ending)
    return open_totalsegmentator(task, options.device, fast=options.fast, download=options.download)


def _report(assignment: Assignment, dataset: Dataset, origin: str) -> None:
    made = [
        f"{label} = {' + '.join(classes)}" if list(classes) != [label] else label
        for label, classes in assignment.matched.items()
    ]
    logger.info("labels from %s: %s", origin, ", ".join(made))
    others = [label for label in dataset.label_names if label not in assignment.matched]
    if others:
        logger.warning("labels that %s does not make: %s", origin, ", ".join(others))


def _covered(assigned: Mapping[str, Assignment], cases: Mapping[str, Case]) -> dict[str, Assignment]:
    """Leave out the cases that a folder has no label map of."""
    found, missing = {}, []
    for name, assignment in assigned.items():
        try:
            assignment.segmenter.source(cases[name])
        except FileNotFoundError as error:
            missing.append(Path(str(error)))
        else:
            found[name] = assignment
    names = ", ".join(path.name for path in missing[:_NAMES_SHOWN]) + (", …" if len(missing) > _NAMES_SHOWN else "")
    if not found:
        raise InputError(f"--from: none of the cases has a label map in {missing[0].parent} · expected: {names}")
    if missing:
        logger.warning("%d cases without a label map there are left as they are: %s", len(missing), names)
    return found
