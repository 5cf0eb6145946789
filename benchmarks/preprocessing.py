"""Seconds per case and memory of planning and preprocessing, on one core in this process.

`facts` is what the fingerprint takes per case, `preprocess` what the preprocessed case takes (pre-alignment,
resampling, writing). The commands do both in parallel. The alignment of the sample, once per dataset, is not measured.
With `--workers 1 2` the same cases are also preprocessed by that many processes, once these have started. What plain
arithmetic gains from as many processes is measured right before and after: more than that the machine did not have.
"""

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from result_file import RESULTS, warn_if_busy, write_result

from biasreg.core.dataset import Dataset, read_dataset
from biasreg.core.image_io import read_geometry
from biasreg.core.parallel import map_cases, memory_per_case_gib
from biasreg.core.paths import find_dataset, resolve_roots
from biasreg.core.serialization import read_record
from biasreg.planning.fingerprint import Fingerprint, describe_case
from biasreg.planning.plans import DEFAULT_PLANS_NAME, Plans
from biasreg.preprocessing.prepare import FINGERPRINT_FILE
from biasreg.preprocessing.preprocess import preprocess_case, shared_centers
from biasreg.preprocessing.reference_files import copy_reference
from biasreg.preprocessing.storage import configuration_folder

ARITHMETIC_STEPS = 20_000_000


def main() -> None:
    arguments = parse_arguments()
    warn_if_busy()
    roots = resolve_roots(os.environ, raw=arguments.raw, preprocessed=arguments.preprocessed, results=Path("unused"))
    dataset = read_dataset(find_dataset(arguments.dataset, roots.raw))
    planned = roots.preprocessed / dataset.full_name
    plans = read_record(planned / f"{arguments.plans}.json", Plans)
    seconds = measure(dataset, planned, plans, arguments.cases)
    shapes = [read_geometry(case.images[0]).shape for case in dataset.cases("Tr")[: arguments.cases]]
    voxels = max(int(np.prod(shape)) for shape in shapes)
    results = {
        "seconds_per_case": {stage: summarize(values) for stage, values in seconds.items()},
        "peak_memory_gib": round(peak_memory_gib(), 3),
        "planned_memory_gib": round(memory_per_case_gib(voxels * dataset.num_channels), 3),
    }
    results["workers"] = measure_workers(dataset, planned, plans, arguments) if arguments.workers else []
    print_results(results)
    chosen = plans.configurations[plans.default_configuration].preprocessing
    settings = {
        "dataset": dataset.full_name,
        "cases": len(shapes),
        "largest_image_voxels": voxels,
        "patch_size": list(chosen.patch_size),
        "prealignment": chosen.prealignment,
    }
    output = arguments.output or RESULTS / f"preprocessing_{dataset.full_name}.json"
    write_result(output, settings, results, device="cpu")


def measure(dataset: Dataset, planned: Path, plans: Plans, count: int) -> dict[str, list[float]]:
    """Describe and preprocess the first cases, one after the other, and time each."""
    chosen = plans.configurations[plans.default_configuration].preprocessing
    centers = shared_centers(read_record(planned / FINGERPRINT_FILE, Fingerprint), plans.pairing)
    seconds: dict[str, list[float]] = {"facts": [], "preprocess": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = configuration_folder(planned, plans.plans_name, plans.default_configuration)
        copy_reference(made, folder, chosen)
        for case in dataset.cases("Tr")[:count]:
            center = centers[case.identifier]
            seconds["facts"].append(timed(partial(describe_case, case, dataset.label_values)))
            seconds["preprocess"].append(timed(partial(preprocess_case, case, center, chosen, folder)))
    return seconds


def measure_workers(
    dataset: Dataset, planned: Path, plans: Plans, arguments: argparse.Namespace
) -> list[dict[str, float]]:
    """Preprocess the first cases on several processes, and compare their pace with that of the first number."""
    chosen = plans.configurations[plans.default_configuration].preprocessing
    centers = shared_centers(read_record(planned / FINGERPRINT_FILE, Fingerprint), plans.pairing)
    made = configuration_folder(planned, plans.plans_name, plans.default_configuration)
    found: list[dict[str, float]] = []
    for workers in arguments.workers:
        with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(workers, get_context("spawn")) as executor:
            folder = Path(name)
            copy_reference(made, folder, chosen)
            calls = {
                case.identifier: (case, centers[case.identifier], chosen, folder)
                for case in dataset.cases("Tr")[: arguments.cases]
            }
            warm_up = {f"{number}": next(iter(calls.values())) for number in range(4 * workers)}
            map_cases(preprocess_case, warm_up, executor, "starting")
            before = arithmetic_pace(executor)
            pace = len(calls) / timed(partial(map_cases, preprocess_case, calls, executor, f"{workers} worker(s)"))
            arithmetic = (before + arithmetic_pace(executor)) / 2
        found.append({"workers": workers, "cases_per_second": pace, "arithmetic_per_second": arithmetic})
    for entry in found:
        entry["speedup"] = entry["cases_per_second"] / found[0]["cases_per_second"]
        entry["arithmetic_speedup"] = entry["arithmetic_per_second"] / found[0]["arithmetic_per_second"]
    return [{key: round(value, 4) for key, value in entry.items()} for entry in found]


def arithmetic_pace(executor: Executor) -> float:
    """Additions per second that all processes do together."""
    calls = {f"{number}": (range(ARITHMETIC_STEPS),) for number in range(8)}
    return len(calls) * ARITHMETIC_STEPS / timed(partial(map_cases, sum, calls, executor, "arithmetic"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("-d", "--dataset", required=True, help="planned and preprocessed dataset, id or name")
    parser.add_argument("-p", "--plans", default=DEFAULT_PLANS_NAME, help="name of the plans")
    parser.add_argument("--cases", type=int, default=20, help="at most so many cases")
    parser.add_argument("--workers", type=int, nargs="+", help="also measure the pace of so many processes")
    parser.add_argument("--raw", type=Path, help="root of raw datasets")
    parser.add_argument("--preprocessed", type=Path, help="root of preprocessed data; nothing is written there")
    parser.add_argument("--output", type=Path, help="result file (default: preprocessing_DATASET.json in results/)")
    return parser.parse_args()


def timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def summarize(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 4), "max": round(max(values), 4)}


def peak_memory_gib() -> float:
    """Peak memory of this process, imports included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 2**30


def print_results(results: dict[str, Any]) -> None:
    for stage, times in results["seconds_per_case"].items():
        print(f"{stage:12} median {times['median']:8.3f} s per case, longest {times['max']:.3f} s")
    for entry in results["workers"]:
        print(
            f"{entry['workers']} worker(s): {entry['cases_per_second']:.3f} cases/s, {entry['speedup']:.2f} times; "
            f"plain arithmetic {entry['arithmetic_speedup']:.2f} times"
        )
    print(
        f"peak memory {results['peak_memory_gib']} GiB (biasreg/core/parallel.py reckons with "
        f"{results['planned_memory_gib']} GiB per worker)"
    )


if __name__ == "__main__":
    main()
