"""A raw dataset of four tiny images, and the roots as flags."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from biasreg.core.geometry import Geometry
from biasreg.core.image_io import write_image
from biasreg.core.serialization import write_json

SHAPE = (16, 14, 12)


@pytest.fixture(autouse=True)
def same_logging() -> Iterator[None]:
    """Leave the package's logging as it was: a command sets its level."""
    level = logging.getLogger("biasreg").level
    yield
    logging.getLogger("biasreg").setLevel(level)


@pytest.fixture
def tiny_dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "raw" / "Dataset700_Tiny"
    points = np.stack(np.meshgrid(*(np.arange(side) for side in SHAPE), indexing="ij"), axis=-1)
    for number in range(4):
        distance = np.linalg.norm((points - [8 - number, 7, 6]) / [4, 3, 3], axis=-1)
        geometry = Geometry.centered(SHAPE, (2.0, 2.0, 2.0))
        image = np.where(distance < 1, 50 + 10 * points[..., 0] - 30 * distance, 0).astype(np.float32)
        write_image(folder / "imagesTr" / f"c{number}_0000.nii.gz", image, geometry)
        write_image(folder / "labelsTr" / f"c{number}.nii.gz", (distance < 0.7).astype(np.uint8), geometry)
    content = {"name": "Tiny", "channel_names": {"0": "MRI"}, "labels": {"background": 0, "blob": 1}}
    write_json(folder / "dataset.json", content | {"file_ending": ".nii.gz", "pairing": "inter-subject"})
    return folder


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    return [f"--{root}={tmp_path / root}" for root in ("raw", "preprocessed", "results")]


@pytest.fixture
def run(tiny_dataset: Path, flags: list[str]) -> Callable[..., int]:
    """Return a function that runs a preparing command on the dataset, for the CPU, in this process."""

    def run(main: Callable[[list[str]], int], *arguments: str) -> int:
        return main(["-d", "700", "-gpu_memory_target", "0", "-np", "1", *arguments, *flags])

    return run
