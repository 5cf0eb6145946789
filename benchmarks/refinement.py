"""What a constant of refinement is worth: Dice, roughness and seconds on pairs of cases that a fold holds back.

Never on test pairs, on which nothing is to be chosen. Pairs go around the first of the fold's validation cases, so that
each is moving once and fixed once.
"""

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from result_file import RESULTS, write_result

from biasreg.core.dataset import Case, read_dataset
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import read_channels, read_labels
from biasreg.core.paths import Roots, find_dataset
from biasreg.evaluation.metrics import dice_per_label, field_metrics
from biasreg.inference import refinement
from biasreg.inference.estimation import RegistrationOptions
from biasreg.inference.models import ModelRequest, find_model
from biasreg.inference.native import native_displacement
from biasreg.inference.predictor import Predictor
from biasreg.network.device import select_device
from biasreg.planning.files import SPLITS_FILE, read_folds
from biasreg.spatial.native import warp_label_map

CONSTANTS = tuple(name for name in vars(refinement) if name.isupper() and not name.startswith("_"))
STEPS = "DEFAULT_STEPS"


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    device = select_device(arguments.device)
    roots = Roots(*(arguments.root / name for name in ("raw", "preprocessed", "results")))
    model = find_model(roots.results, ModelRequest(arguments.dataset, None, None, (str(arguments.fold),)))
    predictor = Predictor.from_model(model, device)
    cases = held_back(roots, arguments.dataset, arguments.fold)[: arguments.pairs]
    results: dict[str, Any] = {}
    for name, *changes in [["without", f"{STEPS}=0"], ["default"], *(arguments.setting or [])]:
        constants = dict(read_change(change) for change in changes)
        scores = [measure(predictor, pair, constants) for pair in itertools.pairwise([*cases, cases[0]])]
        results[name] = {"constants": constants, "pairs": scores, "mean": means(scores)}
        print(f"{name}: {results[name]['mean']}", flush=True)
        settings = {"model": model.name, "fold": arguments.fold, "threads": arguments.threads}
        write_result(arguments.output, settings, results, device=str(device))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", "--dataset", required=True, help="dataset with a trained model")
    parser.add_argument("-f", "--fold", type=int, default=0, help="fold")
    parser.add_argument("--root", type=Path, default=Path("biasreg_data"), help="folder of raw, preprocessed, results")
    parser.add_argument("--pairs", type=int, default=3, help="pairs, and cases")
    parser.add_argument(
        "--setting",
        nargs="+",
        action="append",
        metavar=("NAME", "CONSTANT=VALUE"),
        help=f"a name, and other values of {', '.join(CONSTANTS)}; may be given several times",
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    parser.add_argument("--output", type=Path, default=RESULTS / "refinement.json", help="result file")
    return parser.parse_args()


def held_back(roots: Roots, dataset: str, fold: int) -> list[Case]:
    """Find the labelled cases that a fold was not trained on."""
    folder = find_dataset(dataset, roots.raw)
    names = set(read_folds(roots.preprocessed / folder.name / SPLITS_FILE)[fold].validation)
    return [case for case in read_dataset(folder).cases() if case.identifier in names and case.labels is not None]


def read_change(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in CONSTANTS:
        raise SystemExit(f"there is no constant {name}; there are {', '.join(CONSTANTS)}")
    return name, type(getattr(refinement, name))(value)


def measure(predictor: Predictor, pair: tuple[Case, Case], constants: Mapping[str, float]) -> dict[str, Any]:
    """Register a pair with other constants, and score it on the fixed image's grid."""
    moving, fixed = (read_channels(case.images) for case in pair)
    predictor.options = RegistrationOptions(refine_steps=int(constants.get(STEPS, refinement.DEFAULT_STEPS)))
    prepared = predictor.prepare(moving, fixed)
    started = time.process_time()
    with mock.patch.dict(vars(refinement), constants):
        estimated = predictor.estimate(prepared)
    seconds = time.process_time() - started
    frames, grid = prepared.frames[::-1], fixed[0].geometry
    scores = score(pair, native_displacement(estimated.displacement, estimated.grid, frames, grid), grid)
    return {"pair": [case.identifier for case in pair], **scores, "processor_seconds": seconds}


def score(pair: tuple[Case, Case], displacement: NDArray[np.float32], grid: Geometry) -> dict[str, float]:
    """Measure the overlap of the labels that both cases show, and how regular the field is."""
    moving, fixed = (read_labels(case.labels) for case in pair if case.labels is not None)
    values = [int(value) for value in np.intersect1d(moving.array, fixed.array) if value]
    dices = dice_per_label(warp_label_map(moving, displacement, grid), fixed.array, values).values()
    field = field_metrics(displacement, grid)
    return {
        "dice": statistics.mean(dice for dice in dices if dice is not None),
        "log_jacobian_std": field.log_jacobian_std or math.nan,
        "folding_percent": field.folding_percent,
    }


def means(scores: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {
        name: round(float(statistics.mean(each[name] for each in scores)), 4) for name in scores[0] if name != "pair"
    }


if __name__ == "__main__":
    main()
