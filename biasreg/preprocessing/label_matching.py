"""Which classes of a segmentation tool each label of a dataset is made of, by name."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from biasreg.core.errors import DatasetError, InputError, format_faults
from biasreg.core.serialization import from_json, read_json

LabelClasses = dict[str, dict[str, int]]
"""By name of a label: the classes that it is made of, each with its value in the segmenter's label maps."""

_NAMES_SHOWN = 5


def read_label_map(path: Path) -> dict[str, tuple[str | int, ...]]:
    """Read the user's own assignment of classes to labels.

    Args:
        path: JSON: by name of a label the name or the value of a class, or a list of these; an empty list keeps the
            label from being made.

    Returns:
        Classes by label.

    Raises:
        RecordError: The file is missing, is no JSON, or holds anything else.
    """
    entries = from_json(dict[str, str | int | list[str | int]], read_json(path), where=str(path))
    return {label: tuple(entry) if isinstance(entry, list) else (entry,) for label, entry in entries.items()}


def match_labels(
    labels: Sequence[str], classes: Mapping[str, int], given: Mapping[str, Sequence[str | int]], origin: str
) -> LabelClasses:
    """Find the classes of each label: those that the user gave, else the one of the same name.

    Names are compared without regard to capitals, spaces, hyphens and underscores, and to the order of words where that
    leaves one class (`left kidney` is `kidney_left`).

    Args:
        labels: Names of the dataset's foreground labels.
        classes: Value of each class of the segmenter, by name; empty where it names none.
        given: Classes by label, as `read_label_map` reads them.
        origin: Whose classes they are, for messages.

    Returns:
        Classes by label, in the order of `labels`; labels without any are left out.

    Raises:
        DatasetError: Unknown labels or classes are given, a class belongs to two labels, or no label is known.
    """
    faults = [f"there is no label '{label}'{_like(label, labels)}" for label in given if label not in labels]
    found: LabelClasses = {}
    for label in labels:
        if label in given:
            found[label], unknown = _look_up(given[label], classes)
            faults += [f"label '{label}': {origin} knows no class {name!r}{_like(name, classes)}" for name in unknown]
        elif (name := _same_name(label, classes)) is not None:
            found[label] = {name: classes[name]}
    matched = {label: chosen for label, chosen in found.items() if chosen}
    faults += _doubled(matched)
    if faults:
        raise DatasetError(format_faults("labels and classes", faults))
    if not matched:
        raise DatasetError(_nothing_matched(labels, classes, origin))
    return matched


def restrict(matched: LabelClasses, wanted: Sequence[str], origin: str) -> LabelClasses:
    """Keep the labels that are made of wanted classes alone.

    Args:
        matched: Classes by label.
        wanted: Names of classes; all are wanted where there is none.
        origin: Whose classes they are, for messages.

    Returns:
        Classes by label.

    Raises:
        InputError: A wanted class belongs to no label, or nothing is left.
    """
    if not wanted:
        return matched
    known = {name: label for label, classes in matched.items() for name in classes}
    strangers = [f"'{name}'{_like(name, known)}" for name in wanted if name not in known]
    if strangers:
        raise InputError(
            f"--roi_subset names classes of {origin} that no label of the dataset is made of: {', '.join(strangers)} · "
            "correct the names, or assign the classes to labels with --label_map"
        )
    kept = {label: classes for label, classes in matched.items() if set(classes) <= set(wanted)}
    if not kept:
        needed = ", ".join(f"{label}: {' + '.join(matched[label])}" for label in {known[name] for name in wanted})
        raise InputError(f"--roi_subset leaves no label, for a label needs all of its classes ({needed}) · name them")
    return kept


def close_names(name: object, known: Iterable[str]) -> list[str]:
    """Find known names that look like a name.

    Args:
        name: What the user wrote.
        known: What there is.

    Returns:
        At most three, the closest first.
    """
    by_form = {_normalized(other): other for other in known}
    return [by_form[form] for form in difflib.get_close_matches(_normalized(str(name)), by_form, n=3)]


def _look_up(entries: Sequence[str | int], classes: Mapping[str, int]) -> tuple[dict[str, int], list[str | int]]:
    """Find classes by name or value; a segmenter that names no classes has every value."""
    by_value = {value: name for name, value in classes.items()}
    found: dict[str, int] = {}
    unknown: list[str | int] = []
    for entry in entries:
        if isinstance(entry, str) and (name := _same_name(entry, classes)) is not None:
            found[name] = classes[name]
        elif isinstance(entry, int) and entry > 0 and (entry in by_value or not classes):
            found[by_value.get(entry, str(entry))] = entry
        else:
            unknown.append(entry)
    return found, unknown


def _same_name(label: str, classes: Mapping[str, int]) -> str | None:
    if label in classes:
        return label
    form = _normalized(label)
    same = [name for name in classes if _normalized(name) == form]
    # Numbers stay apart in words ("rib_left_1"), so that sorting them cannot mix up "L1" and "1 L".
    same = same or [name for name in classes if sorted(_normalized(name).split("_")) == sorted(form.split("_"))]
    return same[0] if len(same) == 1 else None


def _normalized(name: str) -> str:
    return re.sub(r"[\s_\-]+", "_", name.strip().lower())


def _doubled(matched: LabelClasses) -> list[str]:
    owners: dict[int, list[str]] = {}
    names = {value: name for classes in matched.values() for name, value in classes.items()}
    for label, classes in matched.items():
        for value in classes.values():
            owners.setdefault(value, []).append(label)
    return [
        f"class '{names[value]}' belongs to {' and '.join(labels)}; a voxel has one label, so leave it to one of them"
        for value, labels in owners.items()
        if len(labels) > 1
    ]


def _like(name: object, known: Iterable[str]) -> str:
    close = close_names(name, known)
    return f" (like it: {', '.join(close)})" if close else ""


def _nothing_matched(labels: Sequence[str], classes: Mapping[str, int], origin: str) -> str:
    near = [f"{label}{_like(label, classes)}" for label in labels[:_NAMES_SHOWN]]
    more = f", and {len(labels) - _NAMES_SHOWN} more" if len(labels) > _NAMES_SHOWN else ""
    known = ", ".join(list(classes)[:_NAMES_SHOWN]) + (", …" if len(classes) > _NAMES_SHOWN else "")
    return (
        f"no label of the dataset is a class of {origin} by name: {', '.join(near)}{more} · "
        f"its classes ({len(classes)}) are {known or 'not named'} · say which classes each label is made of with"
        ' --label_map FILE, a JSON such as {"label": ["class", "class"]}'
    )
