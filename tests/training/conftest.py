"""A small preprocessed dataset: two labelled blobs per case, at a place of their own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from biasreg.core.geometry import Geometry
from biasreg.core.paths import Roots
from biasreg.core.serialization import to_json, write_json, write_record
from biasreg.planning.plans import (
    PLANS_SCHEMA_VERSION,
    AugmentationPlans,
    ChannelNormalization,
    Configuration,
    EncoderPlans,
    LossWeights,
    NetworkPlans,
    Plans,
    PreprocessingPlans,
    TrainingPlans,
)
from biasreg.planning.splits import Fold
from biasreg.preprocessing.storage import StoredCase, configuration_folder, write_case, write_stamp
from biasreg.training.data import CaseSource
from biasreg.training.sampling import PairSampler

SHAPE = (16, 16, 16)
IDENTITY_FRAME = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def configuration() -> Configuration:
    return Configuration(
        preprocessing=PreprocessingPlans(
            spacing=(2.0, 2.0, 2.0),
            patch_size=SHAPE,
            normalization=(ChannelNormalization("percentile", 0.5, 99.5),),
            prealignment="center",
            crop="anatomy",
            reference_case=None,
            modality="CT",
            label_values=(1, 2),
            label_names=("large", "small"),
        ),
        network=NetworkPlans(
            in_channels=1,
            num_labels=3,
            encoder=EncoderPlans("residual", "scratch", "full", None, 4, (1,), (1,), 2, ((2, 2, 2),) * 2),
            decoder_channels=(4, 8, 8),
            registration_levels=2,
            segmentation_level=0,
            integration_steps=0,
            correlation_levels=(),
            streams="both",
            biaf=True,
            mac=True,
            checkpointing=False,
        ),
        training=TrainingPlans(
            epochs=2,
            iterations_per_epoch=3,
            batch_size=1,
            learning_rate=1e-3,
            learning_rate_power=0.9,
            learning_rate_warmup=0.0,
            gradient_clip=12.0,
            averaging_decay=0.9,
            similarity="lncc",
            similarity_window_voxels=5,
            weights=LossWeights(1.0, 1.0, 1.0, 1.0, 1.0),
            consistency_warmup=0.1,
            consistency_interval=1,
            labels_per_step=2,
            augmentation=AugmentationPlans(10.0, 0.1, 2.0, 0.02, 1.0, 0.5),
            validation_pairs=2,
        ),
    )


def make_phantom(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make an image (1, X, Y, Z) in [0, 1] and its classes: a large blob (1) with a small one (2) beside it."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in SHAPE), indexing="ij"))
    centre = 7.5 + rng.uniform(-1.5, 1.5, 3)[:, None, None, None]
    labels = (np.linalg.norm(grid - centre, axis=0) < 4.5).astype(np.uint8)
    labels[np.linalg.norm(grid - centre - np.array([4, 0, 0])[:, None, None, None], axis=0) < 2.5] = 2
    image = np.choose(labels, [0.1, 0.6, 0.9]) + rng.normal(0, 0.02, SHAPE)
    return np.clip(image, 0, 1)[None], labels


@pytest.fixture
def write_dataset(tmp_path: Path, configuration: Configuration) -> Callable[..., Roots]:
    """Return a function that writes a preprocessed dataset and returns its roots."""

    def write(
        changed: Configuration = configuration,
        *,
        cases: int = 6,
        annotated: bool = True,
        pairing: str = "inter-subject",
    ) -> Roots:
        roots = Roots(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")
        folder = roots.preprocessed / "Dataset901_Blobs"
        plans = Plans(
            PLANS_SCHEMA_VERSION, "tiny", folder.name, "0", "cpu", 1.0, pairing, "main", {"main": changed}, {}
        )
        names = tuple(f"case{index}" for index in range(cases))
        held_out = cases // 2 - 1
        folds = [Fold(names[held_out:], names[:held_out]), Fold(names[:-held_out], names[-held_out:])]
        write_json(folder / "dataset.json", {"name": "Blobs", "pairs": [{"moving": "case2", "fixed": "case3"}]})
        write_record(folder / "tiny.json", plans)
        write_json(folder / "splits_final.json", [to_json(fold) for fold in folds])
        store = configuration_folder(folder, "tiny", "main")
        write_stamp(store, changed.preprocessing)
        geometry = Geometry.centered(SHAPE, changed.preprocessing.spacing)
        for index, name in enumerate(names):
            record = StoredCase(
                name,
                f"subject{index}",
                "CT",
                annotated,
                (1, 2) if annotated else (),
                IDENTITY_FRAME,
                geometry,
                0.0,
                "0",
            )
            image, labels = make_phantom(index)
            write_case(store, record, image, np.ones(SHAPE), labels if annotated else None)
        return roots

    return write


@pytest.fixture
def source(write_dataset):
    roots = write_dataset(cases=6)
    return CaseSource(
        roots.preprocessed / "Dataset901_Blobs" / "tiny_main", {f"case{index}": index != 5 for index in range(6)}
    )


@pytest.fixture
def sampler():
    return PairSampler({f"case{index}": str(index) for index in range(6)}, "inter-subject")
