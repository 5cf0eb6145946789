import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

SHAPE = (6, 7, 8)


def write_volume(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


@pytest.fixture
def save_volume() -> Callable[..., Path]:
    return write_volume


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


@pytest.fixture
def labels() -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    array[1:3, 1:3, 1:3] = 1
    array[3:5, 3:5, 3:5] = 3
    return array


@pytest.fixture
def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Take the permission to read a file away, also from root, who may read everything."""
    forbidden: set[Path] = set()
    real_open = Path.open

    def refuse(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self in forbidden:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real_open(self, *args, **kwargs)

    def forbid(path: Path) -> None:
        path.chmod(0)
        forbidden.add(path)

    monkeypatch.setattr(Path, "open", refuse)
    return forbid


@pytest.fixture
def make_dataset(tmp_path: Path, image: np.ndarray, labels: np.ndarray) -> Callable[..., Path]:
    """Write a small raw dataset; keyword arguments change its dataset.json (None removes a field)."""

    def make(train=("a", "b", "c"), test=("t", "u"), channels=1, **changes: Any) -> Path:
        folder = tmp_path / "Dataset700_Tiny"
        content: dict[str, Any] = {
            "name": "Tiny",
            "channel_names": {str(number): f"MRI{number}" for number in range(channels)},
            "labels": {"background": 0, "right": 3, "left": 1},
            "file_ending": ".nii.gz",
            "pairing": "inter-subject",
        }
        content.update(changes)
        folder.mkdir()
        text = json.dumps({key: value for key, value in content.items() if value is not None})
        (folder / "dataset.json").write_text(text)
        for split, cases in (("Tr", train), ("Ts", test)):
            for case in cases:
                for number in range(channels):
                    write_volume(folder / f"images{split}" / f"{case}_{number:04d}.nii.gz", image)
                write_volume(folder / f"labels{split}" / f"{case}.nii.gz", labels)
        return folder

    return make
