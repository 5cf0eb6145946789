"""The main job on a synthetic anatomy: plan, train, predict, evaluate, report, by the functions behind the commands."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from biasreg.core.dataset import read_dataset
from biasreg.core.errors import InputError, PredictionError
from biasreg.core.image_io import read_image, read_labels
from biasreg.core.pairs import PairFiles, read_pairs
from biasreg.core.paths import Roots, check_writable
from biasreg.core.transform_io import read_displacement, write_displacement
from biasreg.demo.dataset import make_phantom_dataset
from biasreg.demo.phantom import PhantomSettings, ScannerSettings
from biasreg.evaluation.evaluate import evaluate_predictions
from biasreg.evaluation.records import Evaluation
from biasreg.evaluation.registration_figure import registration_figure
from biasreg.evaluation.tables import format_table
from biasreg.inference.models import ModelRequest, find_model
from biasreg.inference.native import affine_displacement
from biasreg.inference.predict import PredictOptions, check_failures, predict_pairs
from biasreg.preprocessing.prealign import register_affine
from biasreg.preprocessing.prepare import PrepareOptions, plan_and_preprocess
from biasreg.report.make_report import make_report
from biasreg.report.material import ReportRequest
from biasreg.training.fold import train_fold
from biasreg.training.options import TrainingOptions

logger = logging.getLogger(__name__)

DATASET_FOLDER = "Dataset900_Demo"
# Voxels of about 5 mm: coarse enough that two CPU cores train in a few minutes.
SPACING_MM = (4.6, 5.4)
CPU_MEMORY_GIB = 8.0


@dataclass(frozen=True)
class DemoOptions:
    """How the demo is run.

    Attributes:
        epochs: Epochs of training.
        iterations_per_epoch: Steps per epoch.
        seed: Seed of the anatomy.
        num_workers: Processes of preprocessing.
    """

    epochs: int = 5
    iterations_per_epoch: int = 50
    seed: int = 0
    num_workers: int | None = None


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured on the held-out pairs.

    Attributes:
        identity_dice: Mean Dice in the world of the headers.
        affine_dice: Mean Dice after pairwise affine registration.
        biasreg_dice: Mean Dice after biasreg.
        folding_percent: Mean share of folded voxels of biasreg's fields.
        num_pairs: Number of held-out pairs.
        picture: Picture of the first pair.
        report: The report, one HTML file.
    """

    identity_dice: float
    affine_dice: float
    biasreg_dice: float
    folding_percent: float
    num_pairs: int
    picture: Path
    report: Path

    @property
    def line(self) -> str:
        """The result in one line."""
        return (
            f"demo: mean Dice identity {self.identity_dice:.3f} -> affine {self.affine_dice:.3f} -> "
            f"biasreg {self.biasreg_dice:.3f} on {self.num_pairs} held-out pairs (folding {self.folding_percent:.3f} %)"
        )


def run_demo(output: Path, options: DemoOptions) -> DemoResult:
    """Make a synthetic dataset, and take it through the whole pipeline.

    Args:
        output: Folder for everything; must not hold an earlier demo.
        options: How to run.

    Returns:
        What was measured.

    Raises:
        InputError: If the folder already holds a demo, or cannot be written to.
    """
    roots = Roots(output / "raw", output / "preprocessed", output / "results")
    if any(folder.exists() for folder in (roots.raw, roots.preprocessed, roots.results)):
        raise InputError(f"there is an earlier demo in {output} · delete it or choose another folder with -o")
    check_writable(output, "choose another folder with -o")
    settings = PhantomSettings(scanner=ScannerSettings(spacing_mm=SPACING_MM))
    dataset = make_phantom_dataset(roots.raw, settings=settings, seed=options.seed)
    logger.info("made a synthetic dataset: %s", dataset)
    # Always planned for and run on the CPU, so that the demo shows the same thing everywhere.
    plan_and_preprocess(roots, DATASET_FOLDER, PrepareOptions("cpu", CPU_MEMORY_GIB, num_workers=options.num_workers))
    train_fold(
        roots,
        DATASET_FOLDER,
        0,
        TrainingOptions(device="cpu", epochs=options.epochs, iterations_per_epoch=options.iterations_per_epoch),
    )
    predictions = {"affine": output / "affine", "biasreg": output / "predictions"}
    model = find_model(roots.results, ModelRequest(dataset=DATASET_FOLDER))
    options_of_pairs = PredictOptions(save=("levels", "features"))  # which the report shows
    check_failures(predict_pairs(dataset, predictions["biasreg"], model, torch.device("cpu"), options_of_pairs))
    pairs = read_pairs(dataset).pairs
    for pair in pairs:
        _register_affinely(pair, predictions["affine"])
    labels = read_dataset(dataset).json.labels
    evaluation = evaluate_predictions(predictions, dataset, labels, output / "evaluation")
    logger.info("%s", format_table(evaluation))
    picture = output / "demo.png"
    _draw(pairs[0], predictions["biasreg"], picture)
    request = ReportRequest(ModelRequest(dataset=DATASET_FOLDER), roots, predictions["biasreg"], output / "evaluation")
    report = make_report(request, output / "report.html")
    return _summarize(evaluation, picture, report)


def _register_affinely(pair: PairFiles, folder: Path) -> None:
    """Register a pair by SimpleITK's affine alone: what biasreg has to beat."""
    moving, fixed = read_image(pair.moving[0]), read_image(pair.fixed[0])
    matrix = register_affine(fixed, moving, "MRI")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{pair.identifier}_warp.nii.gz"
    write_displacement(path, affine_displacement(matrix, fixed.geometry), fixed.geometry)


def _draw(pair: PairFiles, folder: Path, picture: Path) -> None:
    moving, fixed = read_image(pair.moving[0]), read_image(pair.fixed[0])
    displacement, _ = read_displacement(folder / f"{pair.identifier}_warp.nii.gz")
    labels = (read_labels(pair.moving_seg), read_labels(pair.fixed_seg)) if pair.moving_seg and pair.fixed_seg else None
    registration_figure(picture, moving, fixed, displacement, labels=labels, title=pair.identifier)


def _summarize(evaluation: Evaluation, picture: Path, report: Path) -> DemoResult:
    methods = {summary.method: summary for summary in evaluation.methods}
    dice = {name: summary.dice.mean for name, summary in methods.items() if summary.dice is not None}
    folding = methods["biasreg"].folding_percent
    if evaluation.failures or folding is None or len(dice) < len(methods):
        raise PredictionError(f"the demo's pairs could not be evaluated: {evaluation.failures}")
    return DemoResult(
        identity_dice=dice["identity"],
        affine_dice=dice["affine"],
        biasreg_dice=dice["biasreg"],
        folding_percent=folding.mean,
        num_pairs=methods["biasreg"].num_pairs,
        picture=picture,
        report=report,
    )
