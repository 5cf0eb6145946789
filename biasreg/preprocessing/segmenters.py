"""What a segmenter is to this package, and the plainest one: a folder of label maps that another program made."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from biasreg.core.dataset import Case
from biasreg.core.dataset_json import DATASET_FILE
from biasreg.core.errors import GeometryError, InputError, RecordError
from biasreg.core.image_io import Image, read_labels
from biasreg.core.pseudo_labels import SegmenterRecord
from biasreg.core.serialization import read_json


class Segmentation(NamedTuple):
    """A segmented image.

    Attributes:
        array: (X, Y, Z), values of the segmenter's classes on the image's grid.
        notices: What a user should know about it.
    """

    array: npt.NDArray[Any]
    notices: tuple[str, ...] = ()


class Segmenter(Protocol):
    """Whatever can make label maps of cases."""

    @property
    def record(self) -> SegmenterRecord:
        """What it is, and with which settings; two with equal records (versions apart) give equal label maps."""

    @property
    def device(self) -> str:
        """What it runs on, for the records."""

    @property
    def classes(self) -> Mapping[str, int]:
        """Value of each class by name; empty if it names none."""

    def source(self, case: Case) -> Path | None:
        """Return the file that it takes a case's label map from; None if it makes the map itself.

        Raises:
            FileNotFoundError: It takes label maps from files, and has none of this case.
        """

    def prepare(self, classes: Collection[str]) -> dict[str, str]:
        """Make sure that it can begin, before any work is done.

        Args:
            classes: Names of the classes that are wanted.

        Returns:
            SHA-256 of its checkpoints, by name.

        Raises:
            InputError: Something is missing.
        """

    def segment(self, case: Case, image: Image, classes: Sequence[str]) -> Segmentation:
        """Segment a case.

        Args:
            case: The case.
            image: Its first channel, float32.
            classes: Names of the classes that are wanted; others may be left out.

        Returns:
            Values of classes on the image's grid.

        Raises:
            BiasregError: It cannot.
        """


@dataclass(frozen=True)
class LabelFolder:
    """A folder of label maps, `<case><file_ending>`, made by whatever program.

    Attributes:
        folder: The folder.
        file_ending: Ending of the label maps.
        classes: Value of each class by name; empty where the folder does not tell.
    """

    folder: Path
    file_ending: str
    classes: Mapping[str, int] = field(default_factory=dict)
    device: str = "none"

    @property
    def record(self) -> SegmenterRecord:
        """What it is."""
        return SegmenterRecord("label maps", "", str(self.folder.absolute()), {})

    def source(self, case: Case) -> Path | None:
        """Return the label map of a case.

        Raises:
            FileNotFoundError: There is none.
        """
        path = self.folder / f"{case.identifier}{self.file_ending}"
        if not path.is_file():
            raise FileNotFoundError(path)
        return path

    def prepare(self, classes: Collection[str]) -> dict[str, str]:
        """Do nothing: the files are there, or `source` says that they are not."""
        return {}

    def segment(self, case: Case, image: Image, classes: Sequence[str]) -> Segmentation:
        """Read the label map of a case.

        Raises:
            GeometryError: It lies on another grid than the image.
            ImageError: It cannot be read, or is no label map.
        """
        path = self.folder / f"{case.identifier}{self.file_ending}"
        labels = read_labels(path)
        if not labels.geometry.is_close(image.geometry):
            raise GeometryError(
                f"{path}: its grid ({labels.geometry.describe()}) is not that of {case.images[0]}"
                f" ({image.geometry.describe()}) · resample it onto that image's grid, with nearest neighbours"
            )
        return Segmentation(labels.array)


def open_label_folder(folder: Path, file_ending: str) -> LabelFolder:
    """Open a folder of label maps, and read the names of its classes from its `dataset.json` if it has one.

    Args:
        folder: The folder.
        file_ending: Ending of the label maps, that of the raw dataset.

    Returns:
        The segmenter.

    Raises:
        InputError: There is no such folder, it holds no label map, or its `dataset.json` names no labels.
    """
    if not folder.is_dir():
        raise InputError(f"--from: there is no folder {folder} · name one with label maps <case>{file_ending}")
    if not any(path.name.endswith(file_ending) for path in folder.iterdir()):
        raise InputError(f"--from: {folder} holds no file that ends in {file_ending}, as this dataset's files do")
    path = folder / DATASET_FILE
    return LabelFolder(folder, file_ending, _class_names(path) if path.is_file() else {})


def _class_names(path: Path) -> dict[str, int]:
    """Read `labels` of nnU-Net's dataset.json; entries with several values are its regions, and no classes."""
    content = read_json(path)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict):
        raise RecordError(f'{path}: has no table "labels" of names and values · add it, or remove the file')
    return {name: value for name, value in labels.items() if isinstance(value, int) and value > 0}
