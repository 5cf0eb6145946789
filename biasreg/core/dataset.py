"""A raw dataset: its `dataset.json`, and its cases with their files."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from biasreg.core.dataset_json import DATASET_FILE, DatasetJson
from biasreg.core.errors import DatasetError, RecordError, format_faults
from biasreg.core.given_frames import GivenFrame, given_frames, initial_faults
from biasreg.core.image_io import IMAGE_ENDINGS, VOLUME_ENDINGS
from biasreg.core.paths import split_dataset_name
from biasreg.core.serialization import read_record

Split = Literal["Tr", "Ts"]
SPLITS: tuple[Split, ...] = ("Tr", "Ts")
PSEUDO_LABELS_FOLDER = "pseudo_labelsTr"

_CHANNEL_SUFFIX = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class PseudoLabels:
    """What belongs to a label map that a segmentation tool made or completed.

    Attributes:
        record: What it was made from, and how.
        manual: The user's own label map, kept voxel for voxel in the completed one.
    """

    record: Path
    manual: Path | None


@dataclass(frozen=True)
class Case:
    """One image with what belongs to it.

    Attributes:
        identifier: Name of the case.
        subject: The person; the identifier when `dataset.json` names none.
        modality: Modality; the name of the first channel when `dataset.json` names none.
        images: One file per channel, in the order of the channels.
        labels: Label map; for training cases the pseudo-labels, where they were made.
        mask: Where the similarity counts.
        landmarks: Named points.
        pseudo: What belongs to `labels`, where these are pseudo-labels.
        given: How its frame follows from that of another case, where the user's transforms say so.
    """

    identifier: str
    subject: str
    modality: str
    images: tuple[Path, ...]
    labels: Path | None
    mask: Path | None
    landmarks: Path | None
    pseudo: PseudoLabels | None = None
    given: GivenFrame | None = None

    @property
    def manual_labels(self) -> Path | None:
        """The user's own label map, whether or not it was completed."""
        return self.pseudo.manual if self.pseudo else self.labels


@dataclass(frozen=True)
class Dataset:
    """A raw dataset on disk: its folder, its full name (`Dataset501_Hippocampus`), and its `dataset.json`."""

    folder: Path
    full_name: str
    json: DatasetJson

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the foreground labels, by ascending value."""
        ascending = sorted(self.json.labels.items(), key=lambda item: item[1])
        return tuple(name for name, value in ascending if value != 0)

    @property
    def label_values(self) -> tuple[int, ...]:
        """Values of the foreground labels, ascending."""
        return tuple(self.json.labels[name] for name in self.label_names)

    @property
    def num_channels(self) -> int:
        """Number of image channels."""
        return len(self.json.channel_names)

    def cases(self, split: Split = "Tr") -> tuple[Case, ...]:
        """List the cases of a split, sorted by identifier.

        Raises:
            DatasetError: Image files are missing, doubled or misnamed, or the training split is empty.
        """
        cases, faults = scan_cases(self.folder, self.json, split)
        if faults:
            raise DatasetError(format_faults(self.folder, faults))
        if split == "Tr" and not cases:
            ending = self.json.file_ending
            raise DatasetError(f"{self.folder / 'imagesTr'}: holds no image; expected files such as case_0000{ending}")
        return cases


def read_dataset(folder: Path | str) -> Dataset:
    """Read a raw dataset's `dataset.json` and check it against the names of the files.

    Raises:
        DatasetError: The folder or the file is missing, or `dataset.json` breaks the format or names unknown cases.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DatasetError(f"{root}: there is no such dataset folder")
    split_dataset_name(root.absolute().name)
    path = root / DATASET_FILE
    try:
        json = read_record(path, DatasetJson)
    except RecordError as error:
        raise DatasetError(str(error)) from error
    if not (root / "imagesTr").is_dir():
        raise DatasetError(f"{root}: there is no folder imagesTr; put the training images there")
    faults = [*_json_faults(json), *initial_faults(json), *_name_faults(root, json)]
    if faults:
        raise DatasetError(format_faults(path, faults))
    return Dataset(root, root.absolute().name, json)


def scan_cases(folder: Path, json: DatasetJson, split: Split) -> tuple[tuple[Case, ...], list[str]]:
    """List a split's cases by the names of its files, and every fault of these names.

    Returns:
        The cases whose images are complete, sorted by identifier, and one line for each fault.
    """
    channels, faults = group_channels(folder / f"images{split}", json)
    faults += _stray_channel_faults(channels)
    cases = []
    for identifier in sorted(channels):
        files = channels[identifier]
        faults += _channel_faults(identifier, files, json)
        numbers = range(len(json.channel_names))
        if all(len(files.get(number, [])) == 1 for number in numbers):
            images = tuple(files[number][0] for number in numbers)
            cases.append(_make_case(folder, json, split, identifier, images))
    if split == "Tr":
        frames = given_frames(folder, json, {case.identifier: case.images for case in cases})
        cases = [replace(case, given=frames.get(case.identifier)) for case in cases]
    return tuple(cases), faults


def group_channels(folder: Path, json: DatasetJson) -> tuple[dict[str, dict[int, list[Path]]], list[str]]:
    """Sort the image files by case and channel."""
    groups: dict[str, dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
    faults = []
    count, wanted = len(json.channel_names), json.file_ending
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        ending = next((known for known in VOLUME_ENDINGS if path.name.lower().endswith(known)), None)
        if ending is None or path.name.startswith("."):
            continue
        place = f"{folder.name}/{path.name}"
        identifier, number = _split_channel(path.name[: -len(ending)], count)
        if ending != wanted:
            faults.append(f"{place} ends in {ending}, but dataset.json says {wanted}; convert or remove the file")
        elif number is None:
            faults.append(f"{place} has no channel suffix, but dataset.json names {count} channels; rename it")
        else:
            groups[identifier][number].append(path)
    return groups, faults


def _split_channel(stem: str, num_channels: int) -> tuple[str, int | None]:
    """Split the channel's number off; with one channel a name without `_0000` is the case's own."""
    match = _CHANNEL_SUFFIX.fullmatch(stem)
    if num_channels == 1 and (match is None or match[2] != "0000"):
        return stem, 0
    return (stem, None) if match is None else (match[1], int(match[2]))


def _channel_faults(identifier: str, files: dict[int, list[Path]], json: DatasetJson) -> list[str]:
    count = len(json.channel_names)
    folder = next(iter(files.values()))[0].parent.name
    faults = []
    for number in range(count):
        if number not in files:
            name = f"{folder}/{identifier}_{number:04d}{json.file_ending}"
            faults.append(
                f"case {identifier}: {name} is missing, but dataset.json names {count} channels; add the file"
            )
    for number, paths in sorted(files.items()):
        names = " and ".join(f"{folder}/{path.name}" for path in paths)
        if number >= count:
            faults.append(
                f"case {identifier}: {names} is channel {number}, but dataset.json names {count}; name or remove it"
            )
        elif len(paths) > 1:
            faults.append(f"case {identifier}: {names} are the same channel; remove one")
    return faults


def _stray_channel_faults(identifiers: Iterable[str]) -> list[str]:
    """Find second channels that a single-channel dataset would take for cases of their own."""
    known = set(identifiers)
    return [
        f"case {match[0]}: looks like channel {int(match[2])} of case {match[1]}, but dataset.json names 1 channel;"
        f" name the channel there, or rename the image to {match[0]}_0000"
        for match in map(_CHANNEL_SUFFIX.fullmatch, sorted(known))
        if match and match[1] in known
    ]


def _make_case(folder: Path, json: DatasetJson, split: Split, identifier: str, images: tuple[Path, ...]) -> Case:
    name = f"{identifier}{json.file_ending}"
    labels, mask = folder / f"labels{split}" / name, folder / f"masks{split}" / name
    landmarks = folder / f"landmarks{split}" / f"{identifier}.csv"
    manual = labels if labels.is_file() else None
    completed, record = folder / PSEUDO_LABELS_FOLDER / name, folder / PSEUDO_LABELS_FOLDER / f"{identifier}.json"
    # The record is written last: a map without one is of a run that was killed.
    has_pseudo_labels = split == "Tr" and record.is_file() and completed.is_file()
    return Case(
        identifier=identifier,
        subject=json.subjects.get(identifier, identifier),
        modality=json.modalities.get(identifier, json.channel_names["0"]),
        images=images,
        labels=completed if has_pseudo_labels else manual,
        mask=mask if mask.is_file() else None,
        landmarks=landmarks if landmarks.is_file() else None,
        pseudo=PseudoLabels(record, manual) if has_pseudo_labels else None,
    )


def _json_faults(json: DatasetJson) -> list[str]:
    faults = []
    expected = [str(number) for number in range(len(json.channel_names))]
    if not expected or sorted(json.channel_names) != sorted(expected):
        faults.append(f'channel_names: keys must be "0", "1", … without gaps, got {list(json.channel_names)}')
    if json.labels.get("background") != 0:
        faults.append(f'labels: "background" must be 0, got {json.labels.get("background", "nothing")}; add it')
    if json.file_ending not in IMAGE_ENDINGS:
        faults.append(f"file_ending: {json.file_ending!r} is not known; use one of {', '.join(IMAGE_ENDINGS)}")
    by_value: dict[int, list[str]] = defaultdict(list)
    for name, value in json.labels.items():
        by_value[value].append(name)
        if value < 0:
            faults.append(f"labels.{name}: values must not be negative, got {value}")
    faults += [
        f"labels: {' and '.join(names)} have the same value {value}; give each its own"
        for value, names in by_value.items()
        if len(names) > 1
    ]
    if json.pairing == "listed" and not json.pairs:
        faults.append('pairs: pairing is "listed", but no pair is listed; add {"moving": …, "fixed": …} entries')
    return faults


def _name_faults(folder: Path, json: DatasetJson) -> list[str]:
    """Return a fault for each case that `dataset.json` names and the folders don't hold."""
    training = set(group_channels(folder / "imagesTr", json)[0])
    known = training | set(group_channels(folder / "imagesTs", json)[0])
    faults = [
        f"{table}.{case}: there is no image of such a case in imagesTr or imagesTs; correct the name"
        for table, names in (("subjects", json.subjects), ("modalities", json.modalities))
        for case in names
        if case not in known
    ]
    for table, pairs, cases, place in (
        ("pairs", json.pairs, training, "imagesTr"),
        ("test_pairs", json.test_pairs, known, "imagesTs or imagesTr"),
    ):
        for index, pair in enumerate(pairs):
            faults += [
                f"{table}[{index}]: there is no image of case {case} in {place}; correct the name"
                for case in (pair.moving, pair.fixed)
                if case not in cases
            ]
            if pair.moving == pair.fixed:
                faults.append(f"{table}[{index}]: moving and fixed are the same case {pair.moving}; correct one")
    return faults
