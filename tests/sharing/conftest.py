"""Trained models with names of patients in every place where training leaves them, and archives of them."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from biasreg.core.image_io import write_image
from biasreg.core.serialization import file_hash, read_record, write_json, write_record
from biasreg.inference.models import ModelRequest, find_model
from biasreg.network.checkpoint import load_checkpoint, save_checkpoint
from biasreg.planning.plans import Plans
from biasreg.preprocessing.preprocess import canonical_grid
from biasreg.sharing.export_model import ExportOptions, export_model

# The fixtures of prediction serve here too; one folder's conftest does not reach into another.
_SPEC = importlib.util.spec_from_file_location(
    "inference_fixtures", Path(__file__).parents[1] / "inference" / "conftest.py"
)
_FIXTURES = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_FIXTURES)
one_thread, configuration, write_model = _FIXTURES.one_thread, _FIXTURES.configuration, _FIXTURES.write_model
make_grid, write_pair, draw_anatomy = _FIXTURES.make_grid, _FIXTURES.write_pair, _FIXTURES.draw_anatomy

PATIENTS = ("patient_07", "patient_11", "patient_23", "Miller_scan", "Miller")
DATASET = {
    "name": "Blobs",
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "shell": 3, "core": 7},
    "file_ending": ".nii.gz",
    "pairing": "listed",
    "subjects": {"Miller_scan": "Miller"},
    "pairs": [{"moving": "patient_07", "fixed": "Miller_scan"}],
    "modalities": {"Miller_scan": "MRI"},
    "test_pairs": [{"moving": "patient_11", "fixed": "patient_23"}],
    "licence": "CC0",
    "reference": "made up",
}
SCORE = {"dice_before": 0.5, "folding_fraction": 0.001, "similarity_loss": 0.2}
PROGRESS = {
    "history": [{"epoch": 1, "seconds": 1800.0}, {"epoch": 2, "seconds": 1800.0}],
    "best": {
        "epoch": 2,
        "held_out": "both",
        "pairs": [
            {"moving": "patient_07", "fixed": "patient_11", "dice_after": 0.7, **SCORE},
            {"moving": "patient_11", "fixed": "Miller_scan", "dice_after": 0.9, **SCORE},
        ],
    },
}


def fill(folder, *, why=None):
    """Give a written model what training leaves: dataset.json, the course of each fold, and reasons of the plans."""
    write_json(folder / "dataset.json", DATASET)
    plans = read_record(folder / "plans.json", Plans)
    write_record(folder / "plans.json", replace(plans, why={plans.default_configuration: why or {}}))
    for path in folder.glob("fold_*/checkpoint_best.pth"):
        save_checkpoint(path, replace(load_checkpoint(path), progress=PROGRESS))
    return folder


@pytest.fixture
def model(write_model, tmp_path):
    """A model of two folds with random weights, centred pre-alignment."""
    torch.manual_seed(5)
    fill(write_model(folds=("0", "1"), shift=(1.5, -0.5, 0.25)), why={"spacing": "median", "size": "as in patient_07"})
    return find_model(tmp_path / "results", ModelRequest("901"))


@pytest.fixture
def aligned_model(write_model, configuration, draw_anatomy, tmp_path):
    """A model that aligns every image to that of a patient."""
    torch.manual_seed(6)
    plans = replace(configuration.preprocessing, prealignment="affine", reference_case="patient_07")
    changed = replace(configuration, preprocessing=plans)
    image, _ = draw_anatomy(canonical_grid(plans), (0, 0, 0))
    name = "Dataset902_Aligned"
    reference = write_model(changed, dataset=name) / "reference.nii.gz"
    write_image(reference, image.array, image.geometry)
    folder = write_model(changed, dataset=name, reference_hash=file_hash(reference))
    fill(folder, why={"field_of_view": "the extent of patient_07"})
    return find_model(tmp_path / "results", ModelRequest("902"))


@pytest.fixture
def archive(model, tmp_path):
    """An archive of the model."""
    path = tmp_path / "model.zip"
    export_model(model, path, ExportOptions(licence="CC-BY-4.0", date="2025-01-31"))
    return path


@pytest.fixture
def patients():
    """Names that must not leave the house."""
    return PATIENTS
