"""Training learns: on pairs that it has seen it beats no registration and affine registration by far."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from biasreg.core.image_io import read_image, read_labels
from biasreg.core.serialization import read_record
from biasreg.evaluation.metrics import dice_per_label
from biasreg.inference.models import ModelRequest, find_model
from biasreg.inference.native import affine_displacement
from biasreg.inference.predict import PredictOptions, predict_pairs
from biasreg.inference.record import PredictionRecord
from biasreg.preprocessing import prepare
from biasreg.preprocessing.prealign import register_affine
from biasreg.preprocessing.prepare import PrepareOptions, plan_and_preprocess
from biasreg.spatial.native import warp_label_map
from biasreg.training.fold import train_fold
from biasreg.training.options import TrainingOptions

pytestmark = pytest.mark.slow

MOVING, FIXED = "demo_001", "demo_003"


@pytest.fixture(autouse=True)
def threads_for_processes(monkeypatch):
    monkeypatch.setattr(prepare, "process_executor", lambda workers: ThreadPoolExecutor(1))


def hasten(roots):
    """Plan for seconds, not hours: plain convolutions, a larger learning rate, no augmentation, no second pass."""
    path = roots.preprocessed / "Dataset501_Phantom" / "biasregPlans.json"
    plans = json.loads(path.read_text())
    (configuration,) = plans["configurations"].values()
    configuration["network"]["encoder"]["family"] = "residual"
    configuration["training"]["learning_rate"] = 1e-3
    configuration["training"]["weights"]["consistency"] = 0.0
    configuration["training"]["augmentation"]["probability"] = 0.0
    path.write_text(json.dumps(plans))


def affine_dice(dataset):
    moving, fixed = (read_image(dataset / "imagesTr" / f"{case}_0000.nii.gz") for case in (MOVING, FIXED))
    labels = [read_labels(dataset / "labelsTr" / f"{case}.nii.gz") for case in (MOVING, FIXED)]
    displacement = affine_displacement(register_affine(fixed, moving, "MRI"), fixed.geometry)
    warped = warp_label_map(labels[0], displacement, fixed.geometry)
    return np.mean(list(dice_per_label(warped, labels[1].array, range(1, 8)).values()))


def test_a_trained_pair_is_registered_better_than_by_nothing_and_by_affine_alone(roots, make_dataset, tmp_path):
    dataset = make_dataset(roots.raw, train=3)
    plan_and_preprocess(roots, "501", PrepareOptions("cpu", 8.0))
    hasten(roots)
    options = TrainingOptions(device="cpu", epochs=2, iterations_per_epoch=100, num_workers=0)
    train_fold(roots, "501", "all", options)
    entry = {"id": "pair"}
    for role, case in (("moving", MOVING), ("fixed", FIXED)):
        entry |= {role: f"imagesTr/{case}_0000.nii.gz", f"{role}_seg": f"labelsTr/{case}.nii.gz"}
    (dataset / "pairs.json").write_text(json.dumps([entry]))
    model = find_model(roots.results, ModelRequest())
    alone = PredictOptions(refine_steps=0)
    assert predict_pairs(dataset / "pairs.json", tmp_path, model, torch.device("cpu"), alone) == {}
    record = read_record(tmp_path / "pair.json", PredictionRecord)
    before, after = (
        np.mean(list(scores.values())) for scores in (record.accuracy.dice_before, record.accuracy.dice_after)
    )
    assert after > before + 0.15
    assert after > affine_dice(dataset) + 0.1
    assert record.quality.folding_percent < 1
