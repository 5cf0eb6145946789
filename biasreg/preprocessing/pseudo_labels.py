"""Label maps made by a segmenter for the training cases that have none, or not all labels."""

import datetime
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from tqdm import tqdm

import biasreg
from biasreg.core.dataset import PSEUDO_LABELS_FOLDER, Case, Dataset, read_dataset
from biasreg.core.errors import DatasetError, format_faults
from biasreg.core.image_io import read_image, read_labels, write_image
from biasreg.core.paths import Roots, check_writable, find_dataset
from biasreg.core.pseudo_labels import PSEUDO_LABELS_SCHEMA_VERSION, PseudoLabelRecord, image_hash, input_hashes
from biasreg.core.serialization import write_record
from biasreg.core.verification import check_case
from biasreg.preprocessing.label_completion import complete_labels
from biasreg.preprocessing.label_quality import MIN_AGREEMENT
from biasreg.preprocessing.pseudo_label_files import PseudoLabelFiles, made_otherwise, misfit, refuse_corrected
from biasreg.preprocessing.segmenter_choice import Assignment, SegmenterOptions, assign_segmenters

logger = logging.getLogger(__name__)

# Cases with all labels drawn by hand that are segmented too, only to tell how well the segmenter agrees with them.
AGREEMENT_CASES = 3


@dataclass(frozen=True)
class PseudoLabelOptions:
    """How pseudo-labels are made.

    Attributes:
        segmenter: What segments, and which of its classes make which label.
        clean: Make all anew, those included that were corrected by hand since.
        keep_others: Keep those that still fit their case, whatever they were made with.
    """

    segmenter: SegmenterOptions = field(default_factory=SegmenterOptions)
    clean: bool = False
    keep_others: bool = False


@dataclass(frozen=True)
class _Work:
    """A case that is to be segmented, or was.

    Attributes:
        case: The case, its labels those drawn by hand.
        assignment: What segments it.
        files: Where its pseudo-labels lie.
    """

    case: Case
    assignment: Assignment
    files: PseudoLabelFiles


def make_pseudo_labels(roots: Roots, reference: str, options: PseudoLabelOptions) -> tuple[PseudoLabelRecord, ...]:
    """Complete the label maps of a dataset's training cases by what a segmenter finds.

    Maps and records lie in `pseudo_labelsTr`; `labelsTr` is never written to. What is there and still fits is kept, so
    that an interrupted run goes on where it was.

    Args:
        roots: Root folders.
        reference: Dataset id or name.
        options: How they are made.

    Returns:
        Records of the cases that the segmenter was run on, now or before.

    Raises:
        InputError: Labels, classes or tasks do not fit, TotalSegmentator or its weights are missing, or pseudo-labels
            that were corrected by hand would be lost.
        DatasetError: Raw files have faults; all of them are named.
        BiasregError: A case could not be segmented; those that are done are kept.
    """
    dataset = read_dataset(find_dataset(reference, roots.raw))
    advice = "pseudo-labels are written beside labelsTr: get the permission, or copy the dataset"
    check_writable(dataset.folder / PSEUDO_LABELS_FOLDER, advice)
    cases = [replace(case, labels=case.manual_labels, pseudo=None) for case in dataset.cases("Tr")]
    assigned = assign_segmenters(dataset, cases, options.segmenter)
    work = [
        _Work(case, assigned[case.identifier], PseudoLabelFiles.of(dataset, case))
        for case in cases
        if case.identifier in assigned
    ]
    wanted = _choose(work, dataset)
    chosen = {item.case.identifier for item in wanted}
    _delete_unwanted([item for item in work if item.case.identifier not in chosen], dataset, options)
    pending = _pending(wanted, dataset, options)
    logger.info("pseudo-labels: %d of %d cases are up to date", len(wanted) - len(pending), len(wanted))
    _make_all(pending, dataset)
    records = tuple(item.files.read() for item in wanted)
    _report(records)
    return records


def report_use(dataset: Dataset) -> None:
    """Say how many training cases have pseudo-labels, where any has.

    Args:
        dataset: The raw dataset.
    """
    cases = dataset.cases("Tr")
    pseudo = [case for case in cases if case.pseudo]
    if pseudo:
        completed = sum(case.manual_labels is not None for case in pseudo)
        logger.info(
            "%s: %d of %d training cases have pseudo-labels (%s), which complete labels drawn by hand in %d of them",
            *(dataset.full_name, len(pseudo), len(cases), PSEUDO_LABELS_FOLDER, completed),
        )


def _choose(work: Sequence[_Work], dataset: Dataset) -> list[_Work]:
    """Choose the cases to segment: those that lack a label, and a few complete ones to compare with."""
    complete = [item for item in work if _is_complete(item, dataset)]
    if len(complete) == len(work):
        logger.info("pseudo-labels: all cases have all labels that could be made; there is nothing to do")
        return []
    indices = np.linspace(0, len(complete) - 1, min(AGREEMENT_CASES, len(complete))).round().astype(int)
    compared = [complete[index].case.identifier for index in indices]
    if compared:
        logger.info("segmented only to compare with labels drawn by hand: %s", ", ".join(compared))
    spared = {item.case.identifier for item in complete} - set(compared)
    return [item for item in work if item.case.identifier not in spared]


def _is_complete(item: _Work, dataset: Dataset) -> bool:
    """Tell whether the user drew all labels that the segmenter could make."""
    if item.case.labels is None:
        return False
    values = {dataset.json.labels[label] for label in item.assignment.matched}
    return values <= set(np.unique(read_labels(item.case.labels).array).tolist())


def _delete_unwanted(unwanted: Sequence[_Work], dataset: Dataset, options: PseudoLabelOptions) -> None:
    """Delete the pseudo-labels of cases whose labels have all been drawn by hand since."""
    present = [item for item in unwanted if item.files.record.is_file()]
    if options.keep_others:
        present = [item for item in present if misfit(item.files, item.case, dataset)]
    if not options.clean:
        refuse_corrected([item.files for item in present if item.files.is_corrected()])
    for item in present:
        logger.info("case %s: its labels are all drawn by hand; pseudo-labels deleted", item.case.identifier)
        item.files.delete()


def _pending(wanted: Sequence[_Work], dataset: Dataset, options: PseudoLabelOptions) -> list[_Work]:
    """Find the cases whose pseudo-labels are missing, or were made from other files or in another way."""
    if options.clean:
        return list(wanted)
    pending, present = [], []
    for item in wanted:
        exists = item.files.record.is_file()
        reason = misfit(item.files, item.case, dataset) if exists else "it is missing"
        if reason is None and not options.keep_others:
            reason = made_otherwise(item.files, item.case, item.assignment)
        if reason is not None:
            pending.append(item)
            present += [item] if exists else []
            logger.log(logging.INFO if exists else logging.DEBUG, "%s: made anew: %s", item.files.map.name, reason)
    refuse_corrected([item.files for item in present if item.files.is_corrected()])
    return pending


def _make_all(pending: Sequence[_Work], dataset: Dataset) -> None:
    """Segment cases, once it is sure that all can be."""
    segmenters = {item.assignment.segmenter.record.task: item.assignment for item in pending}
    weights = {task: one.segmenter.prepare(one.class_names) for task, one in segmenters.items()}
    faults = [fault for item in pending for fault in check_case(item.case, dataset.label_values)]
    if faults:
        raise DatasetError(format_faults(dataset.folder, faults))
    for item in tqdm(pending, desc="pseudo-labels", disable=None):
        _make(item, weights[item.assignment.segmenter.record.task], dataset.json.labels)


def _make(item: _Work, weights: dict[str, str], label_table: Mapping[str, int]) -> None:
    """Segment a case and write its map, if anything is added, and its record."""
    case, segmenter, files = item.case, item.assignment.segmenter, item.files
    image = read_image(case.images[0])
    drawn = None if case.labels is None else read_labels(case.labels).array
    start = time.monotonic()
    segmentation = segmenter.segment(case, image, item.assignment.class_names)
    seconds = time.monotonic() - start
    completed = complete_labels(segmentation.array, drawn, image.geometry, item.assignment.matched, label_table)
    files.delete()
    if completed.added:
        write_image(files.map, completed.array, image.geometry)
    record = PseudoLabelRecord(
        schema_version=PSEUDO_LABELS_SCHEMA_VERSION,
        case=case.identifier,
        written=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        segmenter=segmenter.record,
        weights=weights,
        device=segmenter.device,
        versions={"biasreg": biasreg.__version__, "python": platform.python_version()},
        seconds=round(seconds, 2),
        inputs=input_hashes(case, segmenter.source(case)),
        map_hash=image_hash(files.map) if completed.added else None,
        labels=completed.labels,
        notices=segmentation.notices,
    )
    write_record(files.record, record)
    for label in completed.labels:
        if label.origin == "excluded":
            logger.warning("case %s: %s is left out: %s", case.identifier, label.name, label.reason)
    for notice in segmentation.notices:
        logger.warning("case %s: %s", case.identifier, notice)


def _report(records: Sequence[PseudoLabelRecord]) -> None:
    """Say per label in how many cases it was added or left out, and how well it agrees with what was drawn by hand."""
    found = [label for record in records for label in record.labels]
    for name in dict.fromkeys(label.name for label in found):
        own = [label for label in found if label.name == name]
        count = {origin: sum(label.origin == origin for label in own) for origin in ("pseudo", "excluded")}
        agreement = [label.manual_dice for label in own if label.manual_dice is not None]
        text = f"{name}: added in {count['pseudo']} cases, left out in {count['excluded']}"
        if agreement:
            text += f"; Dice with {len(agreement)} drawn by hand: {np.mean(agreement):.2f}"
        logger.info("%s", text)
        if agreement and np.mean(agreement) < MIN_AGREEMENT:
            logger.warning("%s: the segmenter seems to mean another structure; look at it, or leave it out", name)
