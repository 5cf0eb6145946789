"""From raw data to scores with no labels at all, and with labels of some cases, through the Python functions."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from biasreg.core.serialization import read_record
from biasreg.evaluation.evaluate import evaluate_predictions
from biasreg.inference.models import ModelRequest, find_model
from biasreg.inference.predict import PredictOptions, predict_pairs
from biasreg.inference.record import PredictionRecord
from biasreg.preprocessing import prepare
from biasreg.preprocessing.prepare import PrepareOptions, plan_and_preprocess
from biasreg.training.fold import train_fold
from biasreg.training.options import TrainingOptions
from biasreg.training.validation import ValidationResult

pytestmark = pytest.mark.slow

TRAINING = TrainingOptions(device="cpu", epochs=2, iterations_per_epoch=6, num_workers=0)
PAIR = "demo_005_to_demo_006"


@pytest.fixture(autouse=True)
def threads_for_processes(monkeypatch):
    monkeypatch.setattr(prepare, "process_executor", lambda workers: ThreadPoolExecutor(1))


def take_all_labels(dataset):
    for folder in dataset.glob("labels*"):
        shutil.rmtree(folder)
    path = dataset / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": {"background": 0}}))


def train_and_predict(roots, dataset):
    plans = plan_and_preprocess(roots, "501", PrepareOptions("cpu", 8.0))
    fold = train_fold(roots, "501", 0, TRAINING)
    model = find_model(roots.results, ModelRequest(dataset="501"))
    output = roots.results / "predictions"
    assert predict_pairs(dataset, output, model, torch.device("cpu"), PredictOptions()) == {}
    lines = (fold / "metrics.jsonl").read_text().splitlines()
    return plans, [json.loads(line) for line in lines], read_record(fold / "validation.json", ValidationResult), output


def test_without_any_label_the_images_alone_train_a_model(roots, make_dataset):
    dataset = make_dataset(roots.raw, train=4)
    take_all_labels(dataset)
    plans, epochs, validation, output = train_and_predict(roots, dataset)
    configuration = plans.configurations[plans.default_configuration]
    assert configuration.network.num_labels == 1
    assert configuration.training.weights.overlap == configuration.training.weights.segmentation == 0
    assert len(epochs) == 2
    assert validation.dice_after is None
    assert validation.similarity_loss is not None
    assert read_record(output / f"{PAIR}.json", PredictionRecord).accuracy is None
    assert not (output / f"{PAIR}_warped_seg.nii.gz").exists()
    evaluation = evaluate_predictions(output, dataset)
    assert evaluation.failures == ()
    assert all(scores.dice is None and scores.landmarks is not None for scores in evaluation.pairs)


def test_labels_of_some_cases_are_used_and_the_others_train_too(roots, make_dataset):
    dataset = make_dataset(roots.raw, train=4, unlabelled=2)
    plans, epochs, validation, output = train_and_predict(roots, dataset)
    configuration = plans.configurations[plans.default_configuration]
    assert configuration.network.num_labels == 8
    assert configuration.training.weights.overlap > 0
    assert len(epochs) == 2
    (log,) = roots.results.rglob("training_log.txt")
    assert re.search(r"3 training cases, [12] of them with labels", log.read_text())
    scored = [pair for pair in validation.pairs if pair.dice_after is not None]
    assert len(scored) < len(validation.pairs)
    assert read_record(output / f"{PAIR}.json", PredictionRecord).accuracy is not None
    evaluation = evaluate_predictions(output, dataset)
    assert all(scores.dice is not None for scores in evaluation.pairs)
