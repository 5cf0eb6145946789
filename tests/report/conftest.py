"""A study on disk: registered pairs of a lopsided phantom, references, an evaluation, and a trained model's folder."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from dataset_kinds import KINDS, make_dataset, make_fingerprint

from biasreg.core.geometry import Geometry, apply_affine
from biasreg.core.image_io import Image, write_image
from biasreg.core.paths import Roots
from biasreg.core.serialization import file_hash, to_json, write_json, write_record
from biasreg.core.transform_io import write_displacement
from biasreg.evaluation.evaluate import evaluate_predictions
from biasreg.inference.prediction import FieldQuality, InverseError
from biasreg.inference.record import Accuracy, InputFile, PredictionRecord, Provenance, Settings
from biasreg.inference.trust import Check, Trust
from biasreg.planning.planner import Target, plan_experiment
from biasreg.training.observers import EpochRecord
from biasreg.training.validation import PairScore, ValidationResult

AXES = {"RAS": np.eye(3), "LPS": np.diag([-1.0, -1, 1]), "PIR": np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])}
SIZE_MM = np.array([40.0, 48.0, 36.0])
LABELS = {"background": 0, "front & <left>": 3, "back": 7}
HOSTILE = '<script>alert(1)&"x'
"""A pair's name that may not become markup."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def same_style_afterwards() -> Iterator[None]:
    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before


def make_grid(axes: str = "RAS", spacing: tuple[float, float, float] = (2.0, 2.4, 3.0)) -> Geometry:
    """A grid over the phantom, whose array axes point as named."""
    affine = np.eye(4)
    affine[:3, :3] = AXES[axes] * spacing
    shape = np.rint(np.abs(AXES[axes].T @ SIZE_MM) / spacing).astype(int)
    affine[:3, 3] = -affine[:3, :3] @ ((shape - 1) / 2)
    return Geometry.from_affine(affine, shape)


def paint(grid: Geometry, shift_mm: tuple[float, float, float] = (0, 0, 0)) -> tuple[Image, Image]:
    """The phantom and its labels: brighter to the right and to the front, shifted in the world."""
    points = apply_affine(grid.affine, np.moveaxis(np.indices(grid.shape), 0, -1)) - shift_mm
    inside = ((points / (SIZE_MM / 2 - 4)) ** 2).sum(axis=-1) < 1
    image = np.where(inside, 100 + 2 * points[..., 0] + points[..., 1], 0)
    image += 60 * (np.linalg.norm(points - [8, 10, 4], axis=-1) < 5)
    labels = np.zeros(grid.shape, dtype=np.uint8)
    labels[np.linalg.norm(points - [-6, 9, 0], axis=-1) < 7] = 3
    labels[np.linalg.norm(points - [2, -9, 3], axis=-1) < 7] = 7
    return Image(image.astype(np.float32), grid), Image(labels, grid)


def smooth_field(grid: Geometry, shift_mm: tuple[float, float, float], share: float = 1.0) -> np.ndarray:
    """A displacement that undoes a part of a shift, with a gentle wave on it; (X, Y, Z, 3), RAS mm."""
    points = apply_affine(grid.affine, np.moveaxis(np.indices(grid.shape), 0, -1))
    field = np.broadcast_to(share * np.array(shift_mm), points.shape).copy()
    field[..., 2] += 0.8 * share * np.sin(points[..., 0] / 6)
    return field.astype(np.float32)


@dataclass
class Study:
    """Files of a study.

    Attributes:
        folder: Holds everything.
        predictions: Folder of predictions.
        references: Folder of the images.
        roots: Raw (empty), preprocessed and results.
        evaluation: Folder of the evaluation, once it is made.
    """

    folder: Path

    @property
    def predictions(self) -> Path:
        return self.folder / "predictions"

    @property
    def references(self) -> Path:
        return self.folder / "references"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation"

    @property
    def roots(self) -> Roots:
        return Roots(self.folder / "raw", self.folder / "preprocessed", self.folder / "results")

    def add_pair(
        self, name: str, *, axes: str = "RAS", shift_mm=(5.0, -3.0, 2.0), share: float = 1.0, folded: bool = False
    ) -> None:
        """Write images, labels, field and record of a pair that is registered by a share of its shift."""
        fixed_grid, moving_grid = make_grid(axes), make_grid("RAS")
        fixed, fixed_labels = paint(fixed_grid)
        moving, moving_labels = paint(moving_grid, shift_mm)
        for role, image, labels in (("moving", moving, moving_labels), ("fixed", fixed, fixed_labels)):
            write_image(self.references / f"{name}_{role}.nii.gz", image.array, image.geometry)
            write_image(self.references / f"{name}_{role}_seg.nii.gz", labels.array, image.geometry)
        field = smooth_field(fixed_grid, shift_mm, share)
        if folded:
            field[4:6, 4:6, 4:6] += np.array([9.0, 9.0, 9.0], dtype=np.float32)
            field[6:8, 4:6, 4:6] -= np.array([9.0, 9.0, 9.0], dtype=np.float32)
        write_displacement(self.predictions / f"{name}_warp.nii.gz", field, fixed_grid)
        write_record(self.predictions / f"{name}.json", self.record(name))

    def record(self, name: str) -> PredictionRecord:
        roles = ("moving", "fixed", "moving_seg", "fixed_seg")
        paths = {role: self.references / f"{name}_{role}.nii.gz" for role in roles}
        return PredictionRecord(
            pair=name,
            written="2026-01-02T03:04:05+00:00",
            provenance=Provenance("Dataset700_Kind/x (fold_0)", {"fold_0/best": "ab" * 32}, "cpu", {"biasreg": "0.1"}),
            inputs=tuple(InputFile(role, str(path), file_hash(path)) for role, path in paths.items()),
            settings=Settings(),
            outputs=(),
            prealignment="center",
            seconds={"total": 2.5},
            quality=FieldQuality(0.0, 0.1, InverseError(0.1, 0.2, 0.3)),
            trust=Trust("PASS", (Check("folding", "PASS", "no voxel folds"),)),
            accuracy=Accuracy({"3": 0.4, "7": 0.5}, {"3": 0.8, "7": 0.9}),
            notices=("a notice <b>with markup</b>",),
        )

    def add_trust(self, name: str) -> None:
        path = self.predictions / f"{name}.json"
        checks = [{"name": "folding", "status": "WARN", "text": "2 % of voxels fold"}]
        said = {"trust": {"status": "WARN", "checks": checks}, "refined_mm": [1.0, 1.0, 1.25]}
        write_json(path, json.loads(path.read_text()) | said)

    def add_levels(self, name: str, axes: str = "RAS", shift_mm=(5.0, -3.0, 2.0)) -> None:
        for level, share in ((3, 0.2), (2, 0.5), (1, 0.8)):
            grid = make_grid(axes)
            path = self.predictions / f"{name}_level{level}_warp.nii.gz"
            write_displacement(path, smooth_field(grid, shift_mm, share), grid)

    def add_features(self, name: str, levels: int = 2) -> None:
        rng = np.random.default_rng(0)
        kinds = ("semantic", "intensity", "enhanced", "semantic_without_biaf", "intensity_without_biaf")
        maps = {
            f"{image}_{kind}_level{level}": rng.normal(size=(3, 16 >> level, 20 >> level, 12 >> level)).astype("f2")
            for image in ("moving", "fixed")
            for kind in kinds
            for level in range(levels)
        }
        np.savez(self.predictions / f"{name}_features.npz", **maps)

    def evaluate(self) -> None:
        other = self.folder / "other"
        for path in sorted(self.references.glob("*_fixed.nii.gz")):
            name = path.name.removesuffix("_fixed.nii.gz")
            grid = make_grid("RAS")
            write_displacement(other / f"{name}_warp.nii.gz", smooth_field(grid, (2.0, -1.0, 1.0)), grid)
        methods = {"biasreg": self.predictions, "other $x$ <b>": other}
        evaluate_predictions(methods, self.references, LABELS, self.evaluation)

    def add_model(self, folds: int = 2) -> None:
        """Write plans, fingerprint and curves; the checkpoints are empty, as nothing but prediction reads them."""
        kind = KINDS["hippocampus MR"]
        fingerprint, dataset = make_fingerprint(kind), make_dataset(kind)
        plans = plan_experiment(fingerprint, dataset, Target("cpu", 16.0))
        preprocessed = self.roots.preprocessed / plans.dataset_name
        write_record(preprocessed / "dataset_fingerprint.json", fingerprint)
        write_record(preprocessed / "biasregPlans.json", plans)
        model = self.roots.results / plans.dataset_name / f"{plans.plans_name}__{plans.default_configuration}"
        write_record(model / "plans.json", plans)
        for fold in range(folds):
            folder = model / f"fold_{fold}"
            folder.mkdir(parents=True)
            (folder / "checkpoint_best.pth").touch()
            lines = [json.dumps(to_json(epoch_record(number))) for number in range(1, 8)]
            (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            score = PairScore("a", "b", 0.5, 0.8, 0.0, 0.3)
            write_record(folder / "validation.json", ValidationResult(6, "both", (score,)))


def epoch_record(epoch: int) -> EpochRecord:
    record = EpochRecord(
        epoch, 10 * epoch, 1e-3, {"total": 1 / epoch, "similarity": 0.5}, 0, None, None, None, None, 1, 0
    )
    if epoch % 2:
        return record
    return dataclasses.replace(record, dice_before=0.5, dice_after=0.7 + epoch / 100, folding_percent=0.0)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = Study(tmp_path)
    for root in (made.predictions, made.references, made.roots.raw):
        root.mkdir()
    return made


@pytest.fixture(scope="session")
def whole_study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study with everything that a report can show; not to be changed."""
    made = Study(tmp_path_factory.mktemp("study"))
    for root in (made.predictions, made.references, made.roots.raw):
        root.mkdir()
    for index in range(6):
        made.add_pair(
            f"pair_{index}", shift_mm=(5.0 - index / 2, -3.0, 2.0), share=0.4 + 0.1 * index, folded=index == 2
        )
    made.add_pair(HOSTILE)
    made.add_trust("pair_0")
    made.add_levels("pair_0")
    made.add_features("pair_0")
    made.evaluate()
    made.add_model()
    return made


@pytest.fixture
def grid_of() -> Callable[..., Geometry]:
    return make_grid
