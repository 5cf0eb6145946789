"""A small raw dataset: a blob with two labels per case, at a place, size and grid of its own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from biasreg.core.geometry import Geometry
from biasreg.core.image_io import write_image
from biasreg.core.paths import Roots
from biasreg.core.serialization import write_json

SHIFTS = ((0.0, 0.0, 0.0), (6.0, -4.0, 3.0), (-5.0, 3.0, 2.0), (2.0, 5.0, -6.0))


def blob(shift, flipped: bool):
    """Image and labels of an asymmetric blob whose centre lies at `shift` in the world."""
    spacing = np.array([2.0, 2.2, 2.5])
    shape = (22, 20, 18)
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing * ([-1, -1, 1] if flipped else [1, 1, 1]))
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    geometry = Geometry.from_affine(affine, shape)
    points = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3] - np.array(shift)
    distance = np.linalg.norm(points / [12.0, 9.0, 10.0], axis=-1)
    second = np.linalg.norm((points - [5.0, 0.0, 2.0]) / [4.0, 3.0, 4.0], axis=-1) < 1
    image = np.where(distance < 1, 100 - 40 * distance + 60 * second, 0).astype(np.float32)
    labels = np.where(second, 7, distance < 1).astype(np.uint8)
    return image, labels, geometry


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")


@pytest.fixture
def raw_dataset(roots: Roots) -> Callable[..., Path]:
    def make(unlabelled=(), **changes) -> Path:
        folder = roots.raw / "Dataset700_Blobs"
        for number, shift in enumerate(SHIFTS):
            image, labels, geometry = blob(shift, flipped=number % 2 == 1)
            write_image(folder / "imagesTr" / f"c{number}_0000.nii.gz", image, geometry)
            if number not in unlabelled:
                write_image(folder / "labelsTr" / f"c{number}.nii.gz", labels, geometry)
        content = {
            "name": "Blobs",
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, "body": 1, "spot": 7},
            "file_ending": ".nii.gz",
            "pairing": "inter-subject",
        }
        write_json(folder / "dataset.json", content | changes)
        return folder

    return make
