"""Seconds per stage of `biasreg_predict`, from the records `<pair>.json` in a folder of its predictions."""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from result_file import RESULTS, write_result

from biasreg.core.serialization import read_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("predictions", type=Path, help="folder that biasreg_predict has written on this machine")
    parser.add_argument("--skip", type=int, default=1, help="leave out the pairs that were registered first")
    parser.add_argument("--output", type=Path, default=RESULTS / "predict_stages.json", help="result file")
    arguments = parser.parse_args()
    records = read_records(arguments.predictions)
    counted = records[arguments.skip :]
    if not counted:
        parser.error(f"{arguments.predictions}: {len(records)} record(s), {arguments.skip} of them to be skipped")
    stages = summarize([record["seconds"] for record in counted])
    for stage, times in stages.items():
        print(f"{stage:12} median {times['median']:8.3f} s   from {times['min']:.3f} to {times['max']:.3f} s")
    provenance = {name: distinct(record["provenance"][name] for record in counted) for name in ("model", "versions")}
    settings = {"pairs": len(counted), "skipped": arguments.skip, **provenance}
    devices = distinct(record["provenance"]["device"] for record in counted)
    write_result(arguments.output, settings, stages, device=", ".join(devices))


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Read the records of a folder, those written first at the front."""
    contents = [read_json(path) for path in sorted(folder.glob("*.json"))]
    records = [content for content in contents if isinstance(content, dict) and "provenance" in content]
    return sorted(records, key=lambda record: str(record["written"]))


def summarize(seconds: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median, smallest and largest time of each stage that every pair has."""
    stages = [stage for stage in seconds[0] if all(stage in times for times in seconds)]
    return {stage: statistics_of([times[stage] for times in seconds]) for stage in stages}


def statistics_of(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 4), "min": min(values), "max": max(values)}


def distinct(values: Any) -> list[Any]:
    """Keep the first of equal values."""
    kept: list[Any] = []
    for value in values:
        if value not in kept:
            kept.append(value)
    return kept


if __name__ == "__main__":
    main()
