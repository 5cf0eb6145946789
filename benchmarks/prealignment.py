"""Dice, plausibility and seconds of affine pre-alignment alone, on pairs of a planned dataset.

Each image is brought into the canonical frame as training and prediction do; a pair's map is the composition of both
frames. All ordered pairs of the held-out cases are measured, and pairs of training cases spread evenly over all.
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from result_file import RESULTS, warn_if_busy, write_result

from biasreg.core.dataset import Case, Dataset, read_dataset
from biasreg.core.geometry import Geometry, apply_affine
from biasreg.core.image_io import read_image, read_labels
from biasreg.core.paths import find_dataset, resolve_roots
from biasreg.core.serialization import read_record
from biasreg.evaluation.metrics import dice_per_label
from biasreg.planning.plans import DEFAULT_PLANS_NAME, Plans, PreprocessingPlans
from biasreg.preprocessing.frames import FrameSource, build_reference, read_frame_source
from biasreg.preprocessing.prealign import foreground_center, translation
from biasreg.preprocessing.storage import configuration_folder
from biasreg.spatial.native import warp_label_map

# The world axes of heads and bodies stay within this angle of each other between scans; beyond it a map is lost.
LARGEST_TURN_DEG = 60.0


class PairResult(NamedTuple):
    """What was measured of one pair."""

    pair: str
    center: float
    affine: float
    turn_deg: float
    mirrored: bool


def main() -> None:
    arguments = parse_arguments()
    warn_if_busy()
    roots = resolve_roots(os.environ, raw=arguments.raw, preprocessed=arguments.preprocessed, results=Path("unused"))
    dataset = read_dataset(find_dataset(arguments.dataset, roots.raw))
    planned = roots.preprocessed / dataset.full_name
    plans = read_record(planned / f"{arguments.plans}.json", Plans)
    chosen = plans.configurations[plans.default_configuration].preprocessing
    folder = configuration_folder(planned, plans.plans_name, plans.default_configuration)
    source = read_frame_source(chosen, folder)
    if arguments.reference:
        source = aligned_to(dataset, replace(chosen, reference_case=arguments.reference))
    values = arguments.labels or list(chosen.label_values)
    held_out = list(itertools.permutations(dataset.cases("Ts"), 2))
    training = spread(list(itertools.permutations(dataset.cases("Tr"), 2)), arguments.training_pairs)
    results: dict[str, Any] = {}
    for name, pairs in (("held_out", held_out), ("training", training)):
        results[name] = measure(pairs, source, values)
        print(name, {key: value for key, value in results[name].items() if key != "pairs"})
    settings = {
        "dataset": dataset.full_name,
        "prealignment": chosen.prealignment,
        "reference_case": source.plans.reference_case,
        "labels": label_names(dataset, values),
    }
    output = arguments.output or RESULTS / f"prealignment_{dataset.full_name}.json"
    write_result(output, settings, results, device="cpu")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", "--dataset", required=True, help="planned and preprocessed dataset, id or name")
    parser.add_argument("-p", "--plans", default=DEFAULT_PLANS_NAME, help="name of the plans")
    parser.add_argument("--labels", type=int, nargs="+", help="label values that count (default: all)")
    parser.add_argument("--training_pairs", type=int, default=30, help="pairs of training cases")
    parser.add_argument("--reference", help="training case that all are aligned to (default: the planned one)")
    parser.add_argument("--raw", type=Path, help="root of raw datasets")
    parser.add_argument("--preprocessed", type=Path, help="root of preprocessed data; nothing is written there")
    parser.add_argument("--output", type=Path, help="result file (default: prealignment_DATASET.json in results/)")
    return parser.parse_args()


def aligned_to(dataset: Dataset, plans: PreprocessingPlans) -> FrameSource:
    """Make the reference of the plans' case anew, and what frames are found from."""
    case = next(case for case in dataset.cases("Tr") if case.identifier == plans.reference_case)
    reference = build_reference(plans, case)
    return FrameSource(plans, reference.image, reference.focus)


def spread(pairs: Sequence[tuple[Case, Case]], count: int) -> list[tuple[Case, Case]]:
    """Take pairs evenly from a list."""
    return [pairs[index] for index in np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int)]


def measure(pairs: Sequence[tuple[Case, Case]], source: FrameSource, values: Sequence[int]) -> dict[str, Any]:
    """Measure pairs (moving, fixed): frames once per case, then Dice at native resolution."""
    cases = {case.identifier: case for pair in pairs for case in pair}
    frames, centers, seconds, cpu = {}, {}, {}, {}
    for name, case in cases.items():
        image = read_image(case.images[0])
        start, start_cpu = time.perf_counter(), time.process_time()
        frames[name] = source.frame(image, (0.0, 0.0, 0.0))
        seconds[name], cpu[name] = time.perf_counter() - start, time.process_time() - start_cpu
        centers[name] = translation(foreground_center(image, source.plans.modality))
    scores = [score_pair(moving, fixed, frames, centers, values) for moving, fixed in pairs]
    return {
        "mean_dice_center": round(statistics.mean(score.center for score in scores), 4),
        "mean_dice_affine": round(statistics.mean(score.affine for score in scores), 4),
        "worse_than_center": [score.pair for score in scores if score.affine < score.center],
        "mirrored_or_lost": [score.pair for score in scores if score.mirrored or score.turn_deg > LARGEST_TURN_DEG],
        "seconds_per_image": summary(seconds.values()),
        "seconds_per_pair": summary(seconds[a.identifier] + seconds[b.identifier] for a, b in pairs),
        "cpu_seconds_per_pair": summary(cpu[a.identifier] + cpu[b.identifier] for a, b in pairs),
        "pairs": [score._asdict() for score in scores],
    }


def summary(values: Iterable[float]) -> dict[str, float]:
    numbers = list(values)
    return {"median": round(statistics.median(numbers), 3), "max": round(max(numbers), 3)}


def score_pair(
    moving: Case,
    fixed: Case,
    frames: dict[str, np.ndarray],
    centers: dict[str, np.ndarray],
    values: Sequence[int],
) -> PairResult:
    """Warp the moving labels by both maps; Dice is the mean over the labels that both show."""
    if moving.labels is None or fixed.labels is None:
        raise SystemExit(f"{moving.identifier} or {fixed.identifier} has no labels; nothing can be measured")
    moving_labels, fixed_labels = read_labels(moving.labels), read_labels(fixed.labels)
    matrix = frames[moving.identifier] @ np.linalg.inv(frames[fixed.identifier])
    center = centers[moving.identifier] @ np.linalg.inv(centers[fixed.identifier])
    shared = [value for value in values if (moving_labels.array == value).any() and (fixed_labels.array == value).any()]
    dice = []
    for candidate in (center, matrix):
        warped = warp_label_map(moving_labels, displacement_of(candidate, fixed_labels.geometry), fixed_labels.geometry)
        scores = dice_per_label(warped, fixed_labels.array, shared)
        dice.append(float(np.mean([scores[value] for value in shared])))
    u, _, v = np.linalg.svd(matrix[:3, :3])
    rotation = u @ v
    turn = float(np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))
    mirrored = bool(np.linalg.det(matrix[:3, :3]) <= 0)
    name = f"{moving.identifier}_to_{fixed.identifier}"
    return PairResult(name, round(dice[0], 4), round(dice[1], 4), round(turn, 1), mirrored)


def displacement_of(matrix: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The displacement (X, Y, Z, 3), RAS mm, of a linear map on a grid."""
    index = np.stack(np.meshgrid(*(np.arange(size) for size in geometry.shape), indexing="ij"), axis=-1)
    points = apply_affine(geometry.affine, index)
    return np.asarray(apply_affine(matrix, points) - points, dtype=np.float32)


def label_names(dataset: Dataset, values: Sequence[int]) -> list[str]:
    return [name for name, value in dataset.json.labels.items() if value in values]


if __name__ == "__main__":
    main()
