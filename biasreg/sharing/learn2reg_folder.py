"""A dataset as the Learn2Reg challenge gives it: `<Name>_dataset.json`, and images named `<Name>_<subject>_<kind>`.

Source: Hering et al. 2023, Learn2Reg, doi:10.1109/TMI.2022.3213983; the layout is that of its datasets from 2021 on
(AbdomenCTCT, AbdomenMRCT, HippocampusMR, LungCT, NLST, OASIS, ThoraxCBCT).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biasreg.core.errors import DatasetError
from biasreg.core.serialization import read_json

ENDING = ".nii.gz"
PAIR_LISTS = ("training_paired_images", "registration_val", "registration_test")
KNOWN_FOLDERS = re.compile(r"(images|labels|masks|landmarks|keypoints(?P<set>\d*))T[rs]", re.ASCII)
KNOWN_KEYS = {
    *("name", "release", "description", "licence", "reference", "pairings", "provided_data", "modality", "labels"),
    *("registration_direction", "img_shift", "tensorImageSize", "tensorImageShape", "training", "test"),
    *("numTraining", "numTest", "numPairedTraining", "numPairedTest", "numRegistration_val", "numRegistration_test"),
    *("test_paired_images", *PAIR_LISTS),
}

_CASE_NAME = re.compile(r"(?P<name>.+?)_(?P<subject>\d{4})(?:_(?P<kind>\d{4}))?", re.ASCII)


@dataclass(frozen=True)
class SourceImage:
    """One image of a Learn2Reg dataset.

    Attributes:
        case: Its name without the ending, which names the files that belong to it.
        path: The file.
        subject: The person's number, as `0012`; the case itself where the name holds none.
        kind: Number of its modality or time point, as `0001`.
    """

    case: str
    path: Path
    subject: str
    kind: str


@dataclass(frozen=True)
class SourcePair:
    """Two cases that the challenge registers."""

    moving: str
    fixed: str


@dataclass(frozen=True)
class Learn2RegFolder:
    """A Learn2Reg dataset on disk.

    Attributes:
        folder: Its folder.
        name: Its name.
        images: Image by case, those of imagesTr and imagesTs.
        pairs: The lists of pairs by their key in the file; pairs without images are left out.
        paired: Whether the file calls its images paired.
        modality: Name of the modality by number of the kind, as far as the file names them.
        label_names: Name of each label by value, as far as the file names them.
        texts: `licence`, `reference` and `description`.
        notices: What could not be read or does not agree.
    """

    folder: Path
    name: str
    images: dict[str, SourceImage]
    pairs: dict[str, tuple[SourcePair, ...]]
    paired: bool
    modality: dict[str, str]
    label_names: dict[int, str]
    texts: dict[str, str]
    notices: tuple[str, ...]

    def files(self, what: str, ending: str = ENDING) -> dict[str, Path]:
        """Find the files of one kind that belong to the images, by case.

        Args:
            what: Beginning of the folder's name, as `labels`.
            ending: File ending.
        """
        found = {}
        for case in self.images:
            for split in ("Tr", "Ts"):
                path = self.folder / f"{what}{split}" / f"{case}{ending}"
                if path.is_file():
                    found[case] = path
        return found


def read_learn2reg(folder: Path) -> Learn2RegFolder:
    """Read a Learn2Reg dataset's file, and list its images.

    Args:
        folder: The folder that holds `<Name>_dataset.json` and `imagesTr`.

    Returns:
        The dataset.

    Raises:
        DatasetError: There is no such file, or more than one, or it lists nothing, or there are no images.
        RecordError: The file is damaged.
    """
    path = _dataset_file(folder)
    data = read_json(path)
    if not isinstance(data, dict):
        raise DatasetError(f"{path}: is no JSON object, and so no description of a Learn2Reg dataset")
    images = {image.case: image for split in ("Tr", "Ts") for image in _images(folder / f"images{split}")}
    if not images:
        raise DatasetError(f"{folder / 'imagesTr'}: holds no image *{ENDING}; name the folder that {path.name} lies in")
    notices: list[str] = []
    pairs = {key: tuple(_pairs(data.get(key) or (), key, images, notices)) for key in PAIR_LISTS}
    notices += _list_notices(data, images) + _folder_notices(folder)
    return Learn2RegFolder(
        folder=folder,
        name=str(data.get("name") or path.name.removesuffix("_dataset.json")),
        images=images,
        pairs=pairs,
        paired=data.get("pairings") in ("paired", "hybrid"),
        modality=_modality(data.get("modality")),
        label_names=_label_names(data.get("labels")),
        texts={key: str(data.get(key) or "") for key in ("licence", "reference", "description")},
        notices=tuple(notices),
    )


def _dataset_file(folder: Path) -> Path:
    found = (
        sorted(path for path in folder.glob("*dataset.json") if not path.name.startswith("."))
        if folder.is_dir()
        else []
    )
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "there is none"
        raise DatasetError(
            f"{folder}: a Learn2Reg dataset has one file <Name>_dataset.json ({names}); name the folder it lies in"
        )
    return found[0]


def _images(folder: Path) -> Iterator[SourceImage]:
    for path in sorted(folder.glob(f"*{ENDING}")) if folder.is_dir() else ():
        if path.name.startswith("."):  # what macOS leaves beside files
            continue
        case = path.name.removesuffix(ENDING)
        match = _CASE_NAME.fullmatch(case)
        subject, kind = (match["subject"], match["kind"] or "0000") if match else (case, "0000")
        yield SourceImage(case, path, subject, kind)


def _case_of(entry: Any) -> str | None:
    """Name of the case that an entry of a list means: a path, or an object with one under `image`."""
    text = entry.get("image") if isinstance(entry, dict) else entry
    return text.replace("\\", "/").rpartition("/")[2].removesuffix(ENDING) if isinstance(text, str) else None


def _pairs(entries: Any, key: str, images: Mapping[str, SourceImage], notices: list[str]) -> Iterator[SourcePair]:
    for entry in entries:
        cases = [_case_of(entry.get(role)) if isinstance(entry, dict) else None for role in ("moving", "fixed")]
        moving, fixed = cases
        if moving is None or fixed is None:
            notices.append(f"{key}: an entry does not name moving and fixed; left out: {entry}")
        elif moving not in images or fixed not in images:
            notices.append(
                f"{key}: there is no image of {moving if moving not in images else fixed}; its pair is left out"
            )
        else:
            yield SourcePair(moving, fixed)


def _list_notices(data: dict[str, Any], images: Mapping[str, SourceImage]) -> list[str]:
    """Compare the lists of images with what is there."""
    training, test = (_listed(data.get(key)) for key in ("training", "test"))
    notices = [f"listed, but there is no image of {case}" for case in sorted((training | test) - set(images))]
    if training and (unlisted := sorted(set(images) - training - test)):
        notices.append(f"{len(unlisted)} image(s) are in no list, {unlisted[0]} for one; they are taken all the same")
    promised = data.get("numTraining")
    if isinstance(promised, int) and training and promised != len(training):
        notices.append(f"numTraining is {promised}, but {len(training)} training images are listed")
    if unknown := sorted(set(data) - KNOWN_KEYS):
        notices.append(f"entries of the file that are not understood: {', '.join(unknown)}")
    return notices


def _listed(entries: Any) -> set[str]:
    """Cases of a list, or of the lists that an object holds by kind."""
    groups = list(entries.values()) if isinstance(entries, dict) else [entries]
    cases = [_case_of(entry) for group in groups if isinstance(group, list) for entry in group]
    return {case for case in cases if case is not None}


def _folder_notices(folder: Path) -> list[str]:
    return [
        f"the folder {path.name} has no place in biasreg's layout and is left out"
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith((".", "__")) and not KNOWN_FOLDERS.fullmatch(path.name)
    ]


def _modality(data: Any) -> dict[str, str]:
    """Name of the modality by number of the kind, with four digits."""
    items = data.items() if isinstance(data, dict) else ()
    return {f"{int(key):04d}": str(name) for key, name in items if str(key).isdecimal()}


def _label_names(data: Any) -> dict[int, str]:
    """Name of each label, of `{"1": "liver"}` or, by kind, of `{"0": {"1": "liver"}}`."""
    if not isinstance(data, dict):
        return {}
    names: dict[int, str] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            names |= _label_names(value)
        elif str(key).isdecimal() and isinstance(value, str):
            names[int(key)] = value
    return names
