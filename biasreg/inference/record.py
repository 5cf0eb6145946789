"""The record of a registered pair: what was measured, from what, and by what."""

import datetime
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

import biasreg
from biasreg.core.image_io import image_files
from biasreg.core.pairs import PairFiles
from biasreg.core.serialization import file_hash
from biasreg.inference.models import TrainedModel, training_notices
from biasreg.inference.prediction import FieldQuality
from biasreg.inference.trust import Trust

Role = Literal["moving", "fixed", "moving_seg", "fixed_seg", "initial"]
GIVEN = "given"
"""Pre-alignment by the user's own transform; other values are those of the plans."""


@dataclass(frozen=True)
class InputFile:
    """A file that a prediction was made from.

    Attributes:
        role: What it is of the pair; a role has one file per channel, and those of the voxels where they lie apart.
        path: Where it was, as the user named it.
        sha256: Hash of its bytes.
    """

    role: Role
    path: str
    sha256: str


@dataclass(frozen=True)
class Provenance:
    """What registers the pairs of a run.

    Attributes:
        model: Dataset, plans, configuration and folds.
        checkpoints: SHA-256 of each checkpoint by its path in the model's folder, as `fold_0/checkpoint_best.pth`.
        device: Name of the GPU, or kind of device.
        versions: Version of biasreg, torch and Python.
        notices: What a user should know about the model, such as folds that were not trained to their end.
    """

    model: str
    checkpoints: dict[str, str]
    device: str
    versions: dict[str, str]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How a pair was registered.

    Attributes:
        save: Further outputs that were asked for.
        mirror_axes: Axes of the canonical frame along which the pair was mirrored as well.
        refine_steps: As was asked for; None where the pair decided.
        compressed: Whether images are `.nii.gz`, not `.nii`.
    """

    save: tuple[str, ...] = ()
    mirror_axes: tuple[int, ...] = ()
    refine_steps: int | None = None
    compressed: bool = True

    def gives(self, wanted: "Settings") -> bool:
        """Tell whether what was made holds all that is wanted."""
        return set(wanted.save) <= set(self.save) and replace(self, save=()) == replace(wanted, save=())


@dataclass(frozen=True)
class Accuracy:
    """Overlap of the labels that both label maps hold, Dice by label value, 0 to 1.

    Attributes:
        dice_before: In the world of the headers, without registration.
        dice_after: After registration.
    """

    dice_before: dict[str, float | None]
    dice_after: dict[str, float | None]


@dataclass(frozen=True)
class PredictionRecord:
    """What is known of a registered pair; it is written last, so that it marks the pair's files as complete.

    Attributes:
        pair: Identifier of the pair.
        written: When, in UTC (ISO 8601).
        provenance: What registered it.
        inputs: What it was made from.
        settings: How it was registered.
        outputs: Names of the files beside the record that belong to it.
        output_bytes: Their sizes, so that a file which was cut off or exchanged is noticed.
        prealignment: What brought the images into the network's frame: the plans' way, or `given` by a file among the
            inputs.
        refined_mm: Voxel size of the finest canonical grid that the field was refined on; None if it was not.
        seconds: Wall time of each stage, and `total`, before this record.
        quality: How regular the transform is.
        trust: Whether to rely on it: PASS, WARN or FAIL, and the checks behind it.
        accuracy: Overlap of the labels; None without label maps of both images.
        notices: What a user should know about this pair.
    """

    pair: str
    written: str
    provenance: Provenance
    inputs: tuple[InputFile, ...]
    settings: Settings
    outputs: tuple[str, ...]
    prealignment: str
    seconds: dict[str, float]
    quality: FieldQuality
    trust: Trust
    accuracy: Accuracy | None
    notices: tuple[str, ...]
    output_bytes: tuple[int, ...] = ()
    refined_mm: tuple[float, float, float] | None = None


def describe_run(model: TrainedModel, device: torch.device) -> Provenance:
    """Describe what registers the pairs.

    Args:
        model: The trained model.
        device: Where it runs.

    Returns:
        The description.
    """
    return Provenance(
        model=model.name,
        checkpoints={path.relative_to(model.folder).as_posix(): file_hash(path) for path in model.checkpoints},
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        versions={
            "biasreg": biasreg.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        notices=training_notices(model),
    )


def describe_inputs(pair: PairFiles) -> tuple[InputFile, ...]:
    """Hash the files that a prediction is made from.

    Args:
        pair: The pair.

    Returns:
        The files, in the order of their roles and channels.
    """
    roles: Mapping[Role, tuple[Path, ...]] = {
        "moving": pair.moving,
        "fixed": pair.fixed,
        "moving_seg": () if pair.moving_seg is None else (pair.moving_seg,),
        "fixed_seg": () if pair.fixed_seg is None else (pair.fixed_seg,),
        "initial": () if pair.initial is None else (pair.initial,),
    }
    return tuple(
        InputFile(role, str(file), file_hash(file))
        for role, paths in roles.items()
        for path in paths
        for file in image_files(path)
    )


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
