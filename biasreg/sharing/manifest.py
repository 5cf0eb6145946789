"""What a model's archive says of itself: which files it holds, of which model, in which form."""

import re
from dataclasses import dataclass
from typing import Literal

ARCHIVE_SCHEMA_VERSION = 1

MANIFEST_FILE = "manifest.json"
CARD_FILE = "MODEL_CARD.md"

WEIGHTS_FILE = "weights.safetensors"
FOLD_FILE = "weights.json"

FOLD_ENTRY = re.compile(rf"(fold_(?:\d+|all))/(?:{re.escape(WEIGHTS_FILE)}|{re.escape(FOLD_FILE)})", re.ASCII)
"""Names of the files of a fold; its folder is the first group."""

Reference = Literal["none", "included", "left out"]


@dataclass(frozen=True)
class ArchivedFile:
    """One file of an archive.

    Attributes:
        sha256: Hash of its bytes.
        size: Number of its bytes.
    """

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """What an archive says of itself; every other file of the archive is listed here.

    Attributes:
        schema_version: Version of the archive's layout.
        biasreg_version: Version of biasreg that wrote it.
        date: Day on which it was written, UTC (ISO 8601).
        dataset_name: Full dataset name of the model.
        plans_name: Name of its plans.
        configuration_name: Name of its configuration.
        licence: Licence of the weights, in its maker's words; empty where none was named.
        reference: Whether the image that cases are aligned to is in the archive; `none` where the model has none.
        merged: Whether adapters were folded into the pretrained weights, so that these are in the archive.
        files: All other files, by their names in the archive.
    """

    schema_version: int
    biasreg_version: str
    date: str
    dataset_name: str
    plans_name: str
    configuration_name: str
    licence: str
    reference: Reference
    merged: bool
    files: dict[str, ArchivedFile]

    @property
    def model(self) -> str:
        """Dataset, plans and configuration, as the model's folder in the results is called."""
        return f"{self.dataset_name}/{self.plans_name}__{self.configuration_name}"
