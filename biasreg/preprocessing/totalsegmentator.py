"""TotalSegmentator as a segmenter: its own code and weights, without its reports to the outside."""

import importlib.metadata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from biasreg.core.dataset import Case
from biasreg.core.errors import BiasregError, ImageError, InputError
from biasreg.core.image_io import Image
from biasreg.core.pseudo_labels import SegmenterRecord
from biasreg.core.serialization import file_hash
from biasreg.preprocessing.label_matching import close_names
from biasreg.preprocessing.segmenters import Segmentation
from biasreg.preprocessing.totalsegmentator_isolation import (
    no_download,
    private_home,
    told_in_our_words,
    uninterrupted_children,
)
from biasreg.preprocessing.totalsegmentator_weights import (
    checkpoints,
    download_weights,
    missing_weights,
    needed_weights,
    weights_folder,
)

NAME = "TotalSegmentator"
# It rounds intensities to whole numbers when it resamples, so that images with a range below this lose their contrast.
MIN_RANGE = 100.0
STRETCHED_RANGE = 1000.0


@dataclass(frozen=True)
class TotalSegmentator:
    """One task of TotalSegmentator on one device.

    Attributes:
        task: Name of the task, such as `total` or `total_mr`.
        classes: Value of each class of the task, by name.
        device: `gpu`, `gpu:1`, `mps` or `cpu`.
        fast: Take the model of lower resolution (3 mm).
        download: Let it download weights that are missing.
    """

    task: str
    classes: Mapping[str, int]
    device: str
    fast: bool = False
    download: bool = False

    @property
    def record(self) -> SegmenterRecord:
        """What it is, with its settings."""
        version = importlib.metadata.version("TotalSegmentator")
        return SegmenterRecord(NAME, version, self.task, {"fast": str(self.fast).lower()})

    def source(self, case: Case) -> Path | None:
        """Return None: it makes label maps itself."""
        return None

    def prepare(self, classes: Collection[str]) -> dict[str, str]:
        """Look for the weights, and download them if that is allowed.

        Args:
            classes: Names of the classes that are wanted.

        Returns:
            SHA-256 of the checkpoints, by the name of their folder.

        Raises:
            WeightsError: Weights are missing, or the task needs a licence number.
            InputError: The task has no fast model, or the device is not there.
        """
        api = _python_api()
        _check_device(self.device)
        with private_home():
            needed = needed_weights(api, self.task, fast=self.fast, subset=self._subset(classes) is not None)
            folders = [weights_folder(number) for number in needed]
            missing = [number for number, path in zip(needed, folders, strict=True) if not checkpoints(path)]
            if missing and not self.download:
                raise missing_weights(missing)
            for number in missing:
                download_weights(api, number)
        return {f"{path.name}/{file.parent.name}": file_hash(file) for path in folders for file in checkpoints(path)}

    def segment(self, case: Case, image: Image, classes: Sequence[str]) -> Segmentation:
        """Segment a case.

        Args:
            case: The case.
            image: Its first channel, float32, in HU or raw intensities.
            classes: Names of the classes that are wanted.

        Returns:
            Values of classes on the image's grid.

        Raises:
            ImageError: It is a CT that is not in Hounsfield units.
            BiasregError: TotalSegmentator failed.
        """
        api = _python_api()
        array, notices = intensities_for_rounding(image.array, case)
        volume = nibabel.Nifti1Image(array, image.geometry.affine)
        with (
            private_home(),
            no_download(api, allowed=self.download),
            uninterrupted_children(),
            told_in_our_words(case.images[0]),
        ):
            result = api.totalsegmentator(
                volume,
                None,
                ml=True,
                task=self.task,
                fast=self.fast,
                roi_subset=self._subset(classes),
                device=self.device,
                quiet=True,
            )
        segmented = np.asanyarray(result.dataobj)
        if segmented.shape != image.array.shape:
            raise BiasregError(
                f"TotalSegmentator gave a label map of shape {segmented.shape} for an image of shape"
                f" {image.array.shape} · {case.images[0]} · report this"
            )
        return Segmentation(segmented, notices)

    def _subset(self, classes: Collection[str]) -> list[str] | None:
        """Name the classes that TotalSegmentator should restrict itself to, where that spares it work.

        It then crops to them, found by a coarse model, and runs only the networks that know them. The fast model is a
        single network, and cropping would need a second one; other tasks than the `total` ones know no subset.
        """
        if self.fast or not self.task.startswith("total") or set(classes) == set(self.classes):
            return None
        return sorted(classes)


def open_totalsegmentator(task: str, device: str | None, *, fast: bool, download: bool) -> TotalSegmentator:
    """Open a task of TotalSegmentator.

    Args:
        task: Name of the task.
        device: `gpu`, `cuda`, `cuda:1`, `mps` or `cpu`; None for a GPU if there is one, else the CPU.
        fast: Take the model of lower resolution.
        download: Let it download weights that are missing.

    Returns:
        The segmenter.

    Raises:
        InputError: TotalSegmentator is not installed, or has no such task.
    """
    try:
        from totalsegmentator.map_tasks_config import TASK_CONFIGS  # noqa: PLC0415  an optional dependency
        from totalsegmentator.map_to_binary import class_map  # noqa: PLC0415  an optional dependency
    except ImportError as error:
        raise InputError(
            f"TotalSegmentator is not installed here, or too old ({error}) · "
            "pip install -c constraints.txt 'biasreg[pseudolabels]', or take label maps of another program with --from"
        ) from error
    if task not in TASK_CONFIGS or task not in class_map:
        names = close_names(task, TASK_CONFIGS) or sorted(TASK_CONFIGS)
        raise InputError(
            f"TotalSegmentator has no task '{task}' · give --task one of its tasks, like {', '.join(names)}"
        )
    classes = {name: int(value) for value, name in class_map[task].items()}
    return TotalSegmentator(task, classes, _device_name(device), fast=fast, download=download)


def intensities_for_rounding(array: npt.NDArray[Any], case: Case) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Give an image a range that survives the rounding of its intensities to whole numbers.

    Args:
        array: (X, Y, Z) float32.
        case: Its case.

    Returns:
        The image, stretched if its range is small and its intensities have no unit, and a notice if so.

    Raises:
        ImageError: The image is a CT, and its range shows that it is not in Hounsfield units.
    """
    lowest, highest = float(array.min()), float(array.max())
    if highest - lowest >= MIN_RANGE:
        return array, ()
    if case.modality.upper() == "CT":
        raise ImageError(
            f"{case.images[0]}: values from {lowest:g} to {highest:g} are no Hounsfield units, which TotalSegmentator"
            " needs (air is -1000, water 0) · restore the scanner's values"
        )
    stretched = (array - lowest) * np.float32(STRETCHED_RANGE / max(highest - lowest, 1e-6))
    return stretched, (f"intensities were stretched from {lowest:g}..{highest:g} to 0..{STRETCHED_RANGE:g} for it",)


def _python_api() -> Any:
    """Import what runs it; this brings in torch and nnU-Net."""
    from totalsegmentator import python_api  # noqa: PLC0415  an optional dependency

    return python_api


def _device_name(device: str | None) -> str:
    if device is None:
        import torch  # noqa: PLC0415  late, as what is optional should not slow down the rest

        return "gpu" if torch.cuda.is_available() else "cpu"
    return device.replace("cuda", "gpu", 1)


def _check_device(device: str) -> None:
    """Refuse a device that is not there; TotalSegmentator would silently take the CPU, many times slower."""
    import torch  # noqa: PLC0415

    kind, _, index = device.partition(":")
    count = torch.cuda.device_count() if kind == "gpu" and torch.cuda.is_available() else 0
    there = {"cpu": device == "cpu", "mps": device == "mps" and torch.backends.mps.is_available()}
    there["gpu"] = count > (int(index) if index.isdecimal() else 0)
    if not there.get(kind, False):
        raise InputError(f"device '{device}' is not available here · leave -device out to take the best")
