"""Throughput and memory of a batch of `biasreg_predict`: does it run at the pace of its slowest stage, and stay small?

The pairs are registered again and again until there are enough of them.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path

import torch
from result_file import RESULTS, write_result

from biasreg.core.pairs import read_pairs
from biasreg.core.serialization import read_json
from biasreg.inference.models import ModelRequest, find_model
from biasreg.inference.predict import PredictOptions, predict_pairs
from biasreg.network.device import select_device

# Which stages of the record run in one thread.
STAGES = {
    "prepare": ("read", "prealign", "resample"),
    "register": ("network", "refine", "agreement"),
    "finish": ("field", "inverse", "warp", "folding", "extras", "labels", "write"),
}
SAMPLE_SECONDS = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="pairs, as biasreg_predict takes them")
    parser.add_argument("--results", type=Path, required=True, help="root of the trained models")
    parser.add_argument("-d", "--dataset", required=True, help="dataset of the model")
    parser.add_argument("--count", type=int, default=200, help="pairs to register")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch in each stage")
    parser.add_argument("--device", help="cuda, mps or cpu")
    parser.add_argument("--output", type=Path, default=RESULTS / "predict_batch.json", help="result file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, model = select_device(arguments.device), find_model(arguments.results, ModelRequest(arguments.dataset))
    with tempfile.TemporaryDirectory() as temporary:
        listed = repeated(arguments.pairs, Path(temporary), arguments.count)
        sampler = MemorySampler()
        sampler.start()
        start = time.perf_counter()
        failures = predict_pairs(listed, Path(temporary) / "out", model, device, PredictOptions())
        wall = time.perf_counter() - start
        sampler.done.set()
        if failures:
            raise SystemExit(f"{len(failures)} pairs failed")
        seconds = [read_json(path)["seconds"] for path in sorted((Path(temporary) / "out").glob("*.json"))]
    results = summarize(seconds, wall) | {"memory_mib": thirds(sampler.mib)}
    print(json.dumps(results, indent=2))
    settings = {"model": model.name, "pairs": arguments.count, "torch_threads": arguments.threads}
    write_result(arguments.output, settings, results, device=str(device))


def repeated(source: Path, folder: Path, count: int) -> Path:
    """Write a list of `count` pairs, those of the source over and over."""
    pairs = read_pairs(source).pairs
    entries = []
    for number in range(count):
        files = asdict(pairs[number % len(pairs)])
        files["id"] = f"{number:04d}_{files.pop('identifier')}"
        entries.append({key: convert(value) for key, value in files.items() if value})
    path = folder / "pairs.json"
    path.write_text(json.dumps(entries))
    return path


def convert(value: object) -> object:
    return (
        [str(Path(each).resolve()) for each in value]
        if isinstance(value, tuple | list)
        else (str(value.resolve()) if isinstance(value, Path) else value)
    )


class MemorySampler(threading.Thread):
    """Notes the resident memory of this process every half second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mib: list[float] = []
        self.done = threading.Event()

    def run(self) -> None:
        """Sample until told to stop, and at least once."""
        stopped = False
        while not stopped:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.mib.append(pages * 4096 / 2**20)
            stopped = self.done.wait(SAMPLE_SECONDS)


def summarize(seconds: list[dict[str, float]], wall: float) -> dict[str, object]:
    """Compare the time per pair with that of the slowest stage, the pairs' stages having run side by side."""
    totals = {
        name: sum(times.get(part, 0.0) for times in seconds for part in parts) / len(seconds)
        for name, parts in STAGES.items()
    }
    per_pair = wall / len(seconds)
    return {
        "seconds_per_pair": round(per_pair, 4),
        "stage_seconds_per_pair": {name: round(value, 4) for name, value in totals.items()},
        "over_slowest_stage": round(per_pair / max(totals.values()), 3),
        "over_all_stages": round(per_pair / sum(totals.values()), 3),
    }


def thirds(samples: list[float]) -> dict[str, float]:
    """Median resident memory in the three thirds of the run, and the largest; of all where there are few samples."""
    size = len(samples) // 3
    parts = {"first": samples[:size], "second": samples[size : 2 * size], "last": samples[2 * size :]}
    return {name: round(statistics.median(part or samples), 1) for name, part in parts.items()} | {
        "largest": round(max(samples), 1)
    }


if __name__ == "__main__":
    main()
