"""Seconds per pair from images to displacement fields: `biasreg_predict` beside ANTs SyN and Greedy, on the same pairs.

Each case is a dataset's test pairs, on grids of their own or on one of a given shape. The methods take turns, each as a
command of its own that registers all pairs of the case, in several rounds. biasreg writes field, inverse field and
warped image, the peers the field alone; `biasreg_plain` goes without refinement. The peers run in the environment that
`make interop` makes.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from predict_stages import read_records, statistics_of, summarize
from result_file import RESULTS, ROOT, warn_if_busy, write_result

from biasreg.core.geometry import Geometry
from biasreg.core.image_io import Image, read_image, write_image
from biasreg.core.pairs import read_pairs
from biasreg.spatial.native import warp_image

BIASREG = {"biasreg": (), "biasreg_plain": ("--refine", "0")}
PEERS = {"ants_syn": ("peer_ants.py", "--transform", "SyN"), "greedy": ("peer_greedy.py",)}
PEER_PACKAGES = ("antspyx", "picsl-greedy")
PEER_LINE = re.compile(r"^.+: ([\d.]+) s$", flags=re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """One command over all pairs.

    Attributes:
        command_seconds: From the command's start to its end.
        pairs: Seconds of each pair by stage, in the order in which they were registered; `total` is always there.
    """

    command_seconds: float
    pairs: list[dict[str, float]]


def main() -> None:
    arguments = parse_arguments()
    warn_if_busy()
    results = []
    settings = {
        name: value
        for name, value in vars(arguments).items()
        if name in ("case", "methods", "pairs", "rounds", "threads")
    }
    if set(arguments.methods) & set(PEERS):
        settings["peers"] = peer_versions(arguments.interop)
    for name, dataset, images, *shape in arguments.case:
        with tempfile.TemporaryDirectory() as folder:
            shapes = prepare(Path(images), [int(size) for size in shape], arguments.pairs, Path(folder) / "pairs")
            runs = take_turns(dataset, Path(folder), arguments)
        methods = {method: describe(rounds) for method, rounds in runs.items()}
        results.append({"case": name, "fixed_shapes": shapes, "methods": methods})
        print_case(name, methods)
        write_result(arguments.output, settings, results, device=arguments.device)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--case",
        nargs="+",
        action="append",
        required=True,
        metavar="NAME DATASET IMAGES [X Y Z]",
        help="name of the case; dataset of biasreg's model; raw dataset with test pairs, or what biasreg_predict takes "
        "(first channels alone); shape that all images are resampled to, over the same field of view; may be given "
        "several times",
    )
    methods = [*BIASREG, *PEERS]
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods, help="what is timed (default: all)")
    parser.add_argument("--pairs", type=int, default=3, help="pairs per case; the first one is not counted")
    parser.add_argument("--rounds", type=int, default=3, help="how often each method registers them")
    parser.add_argument("--threads", type=int, default=1, help="threads of every method")
    parser.add_argument("--device", default="cpu", help="device of biasreg; the peers take the CPU")
    parser.add_argument("--interop", type=Path, default=ROOT / ".venv-interop/bin/python", help="Python of the peers")
    parser.add_argument("--output", type=Path, default=RESULTS / "registration_speed.json", help="result file")
    arguments = parser.parse_args()
    if wrong := [case for case in arguments.case if len(case) not in (3, 6)]:
        parser.error(f"--case {' '.join(wrong[0])}: give NAME DATASET IMAGES, or NAME DATASET IMAGES X Y Z")
    return arguments


def prepare(images: Path, shape: list[int], count: int, folder: Path) -> list[tuple[int, int, int]]:
    """Write the pairs as `<pair>_moving.nii.gz` and `<pair>_fixed.nii.gz`; give the shapes of the fixed images."""
    folder.mkdir()
    shapes = []
    for pair in read_pairs(images).pairs[:count]:
        for role, paths in (("moving", pair.moving), ("fixed", pair.fixed)):
            image = read_image(paths[0])
            image = resample(image, shape) if shape else image
            write_image(folder / f"{pair.identifier}_{role}.nii.gz", image.array, image.geometry)
        shapes.append(image.geometry.shape)
    return shapes


def resample(image: Image, shape: Sequence[int]) -> Image:
    """Interpolate an image on a grid of another shape that covers the same field of view."""
    old = image.geometry
    factors = np.array(old.shape) / np.array(shape)
    voxels = np.diag([*factors, 1.0])  # from new voxels to old ones; the outer faces stay where they are
    voxels[:3, 3] = (factors - 1) / 2
    new = Geometry.from_affine(old.affine @ voxels, shape)
    return Image(warp_image(image, None, new), new)


def take_turns(dataset: str, folder: Path, arguments: argparse.Namespace) -> dict[str, list[Run]]:
    """Have each method register all pairs, in turns."""
    runs: dict[str, list[Run]] = {method: [] for method in arguments.methods}
    for number in range(arguments.rounds):
        for method, found in runs.items():
            output = folder / f"{method}_{number}"
            if method in BIASREG:
                found.append(run_biasreg(dataset, BIASREG[method], folder / "pairs", output, arguments))
            else:
                found.append(run_peer(method, folder / "pairs", output, arguments))
    return runs


def run_biasreg(dataset: str, options: Sequence[str], pairs: Path, output: Path, arguments: argparse.Namespace) -> Run:
    command = [Path(sys.executable).with_name("biasreg_predict"), "-i", pairs, "-o", output, "-d", dataset, *options]
    seconds, _ = timed([*command, "--device", arguments.device], environment(arguments.threads))
    return Run(seconds, [record["seconds"] for record in read_records(output)])


def run_peer(method: str, pairs: Path, output: Path, arguments: argparse.Namespace) -> Run:
    script, *options = PEERS[method]
    if method == "greedy":
        options += ["--threads", str(arguments.threads)]
    command = [arguments.interop, ROOT / "benchmarks" / script, pairs, output, *options]
    seconds, printed = timed(command, {**environment(arguments.threads), "PYTHONPATH": str(ROOT)})
    return Run(seconds, [{"total": float(found)} for found in PEER_LINE.findall(printed)])


def environment(threads: int) -> dict[str, str]:
    return {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), str(threads))}


def timed(command: Sequence[object], variables: Mapping[str, str]) -> tuple[float, str]:
    """Run a command, and give its wall time in seconds and what it printed."""
    start = time.perf_counter()
    done = subprocess.run([*map(str, command)], env=variables, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return seconds, done.stdout


def describe(runs: Sequence[Run]) -> dict[str, Any]:
    """Sum up the rounds of a method: all pairs but the first of each command, which pays for what is loaded once."""
    counted = [pair for run in runs for pair in (run.pairs[1:] or run.pairs)]
    starts = [run.command_seconds - sum(pair["total"] for pair in run.pairs) for run in runs]
    return {
        "seconds_per_pair": summarize(counted),
        "first_pair_seconds": statistics_of([run.pairs[0]["total"] for run in runs]),
        "start_seconds": statistics_of(starts),
        "command_seconds": statistics_of([run.command_seconds for run in runs]),
    }


def print_case(name: str, methods: Mapping[str, Mapping[str, Any]]) -> None:
    for method, found in methods.items():
        total, start = found["seconds_per_pair"]["total"]["median"], found["start_seconds"]["median"]
        print(f"{name:12} {method:10} {total:9.2f} s per pair (median), {start:6.2f} s besides for the command")
        if method in BIASREG:
            stages = found["seconds_per_pair"].items()
            print("    by stage: " + ", ".join(f"{stage} {times['median']:.2f}" for stage, times in stages))


def peer_versions(python: Path) -> dict[str, str]:
    if not python.is_file():
        sys.exit(f"{python}: no such Python; run `make interop`, or name another with --interop")
    code = f"import importlib.metadata as m; print(*(m.version(name) for name in {PEER_PACKAGES!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{python}: has not {' and '.join(PEER_PACKAGES)}; run `make interop`, or name another with --interop")
    return dict(zip(PEER_PACKAGES, done.stdout.split(), strict=True))


if __name__ == "__main__":
    main()
