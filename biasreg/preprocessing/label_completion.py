"""The label map of a case, completed by what a segmenter found and the user did not draw."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from biasreg.core.geometry import Geometry
from biasreg.core.pseudo_labels import LabelRecord
from biasreg.preprocessing.label_matching import LabelClasses
from biasreg.preprocessing.label_quality import MIN_AGREEMENT, dice, measure_label, quality_fault

_TYPES = (np.uint8, np.uint16, np.int32, np.int64)


class Completed(NamedTuple):
    """A completed label map.

    Attributes:
        array: (X, Y, Z), values of the dataset's labels; what was drawn by hand is as it was.
        labels: What became of each label.
    """

    array: npt.NDArray[Any]
    labels: tuple[LabelRecord, ...]

    @property
    def added(self) -> bool:
        """Whether anything was added to what was drawn by hand."""
        return any(label.origin == "pseudo" for label in self.labels)


def complete_labels(
    segmented: npt.NDArray[Any],
    drawn: npt.NDArray[Any] | None,
    geometry: Geometry,
    matched: LabelClasses,
    label_table: Mapping[str, int],
) -> Completed:
    """Add the labels that were not drawn by hand, where nothing was drawn by hand.

    A label that the user drew anywhere in the case is never extended. Where what the segmenter found of the drawn
    labels is something else altogether, nothing that it found in the case is added.

    Args:
        segmented: (X, Y, Z), values of the segmenter's classes.
        drawn: (X, Y, Z), the user's label map; None if there is none.
        geometry: The grid of both.
        matched: Classes of each label.
        label_table: Value of each label of the dataset.

    Returns:
        The map, and what became of each label of `matched`.
    """
    kind = next(kind for kind in _TYPES if max(label_table.values()) <= np.iinfo(kind).max)
    result = np.zeros(segmented.shape, kind) if drawn is None else drawn.astype(kind)
    free = result == 0
    present = set(np.unique(result).tolist())
    records: dict[str, LabelRecord] = {}
    for label in (label for label in matched if label_table[label] in present):
        found, own = np.isin(segmented, list(matched[label].values())), result == label_table[label]
        quality = measure_label(found, free | own, geometry, len(matched[label]))
        fields = asdict(quality) | {"origin": "manual", "reason": None, "manual_dice": dice(found, own)}
        records[label] = LabelRecord(label, label_table[label], tuple(matched[label]), **fields)
    distrust = _distrust({label: record.manual_dice or 0.0 for label, record in records.items()})
    for label in (label for label in matched if label_table[label] not in present):
        found = np.isin(segmented, list(matched[label].values()))
        quality = measure_label(found, free, geometry, len(matched[label]))
        reason = quality_fault(quality) or distrust
        if reason is None:
            result[found & free] = label_table[label]
        fields = asdict(quality) | {"origin": "excluded" if reason else "pseudo", "reason": reason, "manual_dice": None}
        records[label] = LabelRecord(label, label_table[label], tuple(matched[label]), **fields)
    return Completed(result, tuple(records[label] for label in matched))


def _distrust(agreement: Mapping[str, float]) -> str | None:
    """Say why nothing that a segmenter found in a case is to be trusted; None where nothing speaks against it."""
    if not agreement:
        return None
    mean = math.fsum(agreement.values()) / len(agreement)
    if mean >= MIN_AGREEMENT:
        return None
    labels = ", ".join(f"{label} {value:.2f}" for label, value in agreement.items())
    return f"the segmenter disagrees with what was drawn by hand in this case (Dice: {labels})"
