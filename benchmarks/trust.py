"""What the verdict says of right pairs, and of pairs that are wrong in known ways.

The moving images of the first pairs are mirrored, turned, replaced by noise or by a foreign image, or given a wrong
voxel size; their headers say nothing of it. All pairs are registered by the networks alone, at which the checks of
likeness and anatomy look with refinement too.
"""

import argparse
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from result_file import RESULTS, write_result

from biasreg.core.errors import BiasregError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import Image, read_channels
from biasreg.core.pairs import read_pairs
from biasreg.inference.estimation import RegistrationOptions
from biasreg.inference.models import ModelRequest, find_model
from biasreg.inference.predictor import Predictor
from biasreg.network.device import select_device

Way = Callable[[Image], Image]
AXES = {"left to right": 0, "front to back": 1, "upside down": 2}


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    device = select_device(arguments.device)
    folds = tuple(arguments.folds) if arguments.folds else None
    model = find_model(arguments.root / "results", ModelRequest(arguments.dataset, None, None, folds))
    predictor = Predictor.from_model(model, device, RegistrationOptions(refine_steps=0))
    pairs = read_pairs(arguments.pairs).pairs
    results: dict[str, Any] = {}
    for kind, change in wrong_ways(arguments.foreign).items():
        chosen = pairs if kind == "right" else pairs[: arguments.wrong_pairs]
        results[kind] = summarize([judge(predictor, change, pair.moving, pair.fixed) for pair in chosen])
        print(f"{kind}: {results[kind]}", flush=True)
    settings = {"model": model.name, "folds": [path.parent.name for path in model.checkpoints]}
    write_result(arguments.output, settings, results, device=str(device))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="right pairs, as biasreg_predict takes them")
    parser.add_argument("-d", "--dataset", required=True, help="dataset of the model")
    parser.add_argument("-f", "--folds", nargs="+", help="folds to use (default: all)")
    parser.add_argument("--root", type=Path, default=Path("biasreg_data"), help="folder of results")
    parser.add_argument("--foreign", type=Path, nargs="+", help="an image of other anatomy, one file per channel")
    parser.add_argument("--wrong_pairs", type=int, default=3, help="pairs that are made wrong in each way")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    parser.add_argument("--output", type=Path, default=RESULTS / "trust.json", help="result file")
    return parser.parse_args()


def wrong_ways(foreign: Sequence[Path] | None) -> dict[str, Way]:
    """Give what is done to each channel of the moving image, by name."""
    ways: dict[str, Way] = {"right": lambda image: image}
    ways |= {f"mirrored {name}": partial(mirrored, axes=(axis,)) for name, axis in AXES.items()}
    ways["mirrored along all axes"] = partial(mirrored, axes=(0, 1, 2))
    ways["turned by 90 degrees"] = turned
    ways["noise in its shape"] = noise
    ways["voxels twice as long along one axis"] = stretched
    if foreign:
        given = itertools.cycle(read_channels(foreign))
        ways["foreign"] = lambda _: next(given)
    return ways


def mirrored(image: Image, axes: tuple[int, ...]) -> Image:
    """Mirror along axes of the body: those of the voxels that lie nearest."""
    nearest = tuple(int(np.abs(image.geometry.affine[axis, :3]).argmax()) for axis in axes)
    return Image(np.ascontiguousarray(np.flip(image.array, nearest)), image.geometry)


def turned(image: Image) -> Image:
    array = np.ascontiguousarray(np.rot90(image.array, axes=(1, 2)))
    return Image(array, Geometry.from_affine(image.geometry.affine, array.shape))


def noise(image: Image) -> Image:
    low, high = float(image.array.min()), float(image.array.max())
    values = np.random.default_rng(0).uniform(low, high, image.array.shape)
    return Image(np.where(image.array > low, values, low).astype(np.float32), image.geometry)


def stretched(image: Image) -> Image:
    affine = image.geometry.affine @ np.diag([1.0, 1.0, 2.0, 1.0])
    return Image(image.array, Geometry.from_affine(affine, image.geometry.shape))


def judge(predictor: Predictor, change: Way, moving: Sequence[Path], fixed: Sequence[Path]) -> dict[str, Any]:
    """Register a pair, and keep its verdict and the figures behind it; a pair that is refused has none."""
    try:
        prepared = predictor.prepare([change(each) for each in read_channels(moving)], read_channels(fixed))
        estimated = predictor.estimate(prepared)
        trust = predictor.finish(prepared, estimated).trust
    except BiasregError as error:
        return {"verdict": "refused", "reason": str(error)}
    after, unrelated = estimated.agreement.after, estimated.agreement.unrelated
    return {
        "verdict": trust.status,
        "likeness_percent": 100 * after / unrelated if after is not None and unrelated else None,
        "anatomy_dice": estimated.agreement.overlap,
        "not_passed": {check.name: check.status for check in trust.checks if check.status != "PASS"},
    }


def summarize(verdicts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Count verdicts and what led to them, and give the range of the figures."""
    found = Counter(check for each in verdicts for check in each.get("not_passed", {}).items())
    return {
        "pairs": len(verdicts),
        "verdicts": dict(Counter(each["verdict"] for each in verdicts)),
        "not_passed": {f"{name} {status}": count for (name, status), count in found.items()},
        **{name: extremes(verdicts, name) for name in ("likeness_percent", "anatomy_dice")},
    }


def extremes(verdicts: Sequence[dict[str, Any]], name: str) -> list[float] | None:
    values = [each[name] for each in verdicts if each.get(name) is not None]
    return [round(min(values), 3), round(max(values), 3)] if values else None


if __name__ == "__main__":
    main()
