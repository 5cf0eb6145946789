"""Small synthetic datasets in biasreg's layout, coarse enough that a step takes a fraction of a second."""

from collections.abc import Callable
from pathlib import Path

import pytest

from biasreg.core.paths import Roots
from biasreg.demo.dataset import make_phantom_dataset
from biasreg.demo.phantom import PhantomSettings, ScannerSettings

DATASET = "Dataset501_Phantom"


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Path]:
    """Return a function that writes a dataset of coarse phantoms under a folder of raw datasets."""

    def make(raw: Path, *, unlabelled: int = 0, train: int = 5, spacing_mm: tuple[float, float] = (8.5, 9.5)) -> Path:
        settings = PhantomSettings(
            num_training_cases=train,
            num_test_cases=2,
            num_test_pairs=2,
            num_unlabelled_cases=unlabelled,
            name=DATASET,
            scanner=ScannerSettings(spacing_mm=spacing_mm),
        )
        return make_phantom_dataset(raw, settings=settings, seed=3)

    return make


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")
