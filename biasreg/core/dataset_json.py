"""What the `dataset.json` of a raw dataset says."""

from dataclasses import dataclass, field
from typing import Literal

DATASET_FILE = "dataset.json"

Pairing = Literal["inter-subject", "intra-subject", "listed"]


@dataclass(frozen=True)
class PairNames:
    """Two cases, by identifier.

    Attributes:
        moving: The moving case.
        fixed: The fixed case.
        initial: A linear ITK transform, from fixed to moving points, that replaces the pre-alignment of the pair; its
            path from the dataset's folder.
    """

    moving: str
    fixed: str
    initial: str | None = None


@dataclass(frozen=True)
class DatasetJson:
    """What `dataset.json` says.

    Attributes:
        name: Name of the dataset.
        channel_names: Name of each channel, by number: `{"0": "MRI"}`.
        labels: Value of each label, by name; `background` is 0. Values need not be consecutive.
        file_ending: Ending of all images and label maps, one of `IMAGE_ENDINGS`.
        pairing: Which pairs make sense: of different subjects, of the same subject, or only the listed ones.
        subjects: Subject of each case; a case that is not named is a subject of its own.
        pairs: Training pairs, for `listed`.
        modalities: Modality of each case, where cases differ.
        test_pairs: Pairs to evaluate on.
        licence: Licence of the data.
        reference: Where the data come from.
        description: Free text.
    """

    name: str
    channel_names: dict[str, str]
    labels: dict[str, int]
    file_ending: str
    pairing: Pairing
    subjects: dict[str, str] = field(default_factory=dict)
    pairs: tuple[PairNames, ...] = ()
    modalities: dict[str, str] = field(default_factory=dict)
    test_pairs: tuple[PairNames, ...] = ()
    licence: str = ""
    reference: str = ""
    description: str = ""
