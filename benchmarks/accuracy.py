"""Collect the means of an evaluation's `summary.json`, with the commands that made it, into a small result file."""

import argparse
from pathlib import Path
from typing import Any

from result_file import RESULTS, write_result

from biasreg.core.serialization import read_json, read_record
from biasreg.evaluation.records import Evaluation, MethodSummary, Statistic

METRICS = ("dice", "hd95_mm", "tre_mm", "folding_percent", "log_jacobian_std", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("summary", type=Path, help="summary.json of biasreg_evaluate")
    parser.add_argument("--name", required=True, help="name of the result, for example 501_cpu")
    parser.add_argument("--command", action="append", default=[], help="a command that made it, in order; repeat it")
    parser.add_argument(
        "--predictions", type=Path, help="folder of biasreg_predict, to note model, device and versions"
    )
    parser.add_argument("--note", default="", help="what a reader should know")
    parser.add_argument("--output", type=Path, help="result file (default: benchmarks/results/accuracy_NAME.json)")
    arguments = parser.parse_args()
    evaluation = read_record(arguments.summary, Evaluation)
    results = {
        "methods": {summary.method: collect(summary) for summary in evaluation.methods},
        "failures": len(evaluation.failures),
    }
    for method, values in results["methods"].items():
        print(f"{method:12} {describe(values)}")
    provenance = [] if arguments.predictions is None else read_provenance(arguments.predictions)
    settings = {
        "name": arguments.name,
        "commands": arguments.command,
        "note": arguments.note,
        "predicted_by": provenance,
    }
    output = arguments.output or RESULTS / f"accuracy_{arguments.name}.json"
    devices = sorted({str(entry["device"]) for entry in provenance}) or ["not stated"]
    write_result(output, settings, results, device=", ".join(devices))


def collect(summary: MethodSummary) -> dict[str, Any]:
    """Take mean, standard deviation and number of pairs of each metric that the method has."""
    values: dict[str, Any] = {"pairs": summary.num_pairs}
    for metric in METRICS:
        statistic: Statistic | None = getattr(summary, metric)
        if statistic is not None:
            values[metric] = {
                "mean": round(statistic.mean, 5),
                "std": round(statistic.std, 5),
                "count": statistic.count,
            }
    if summary.unmeasured_hd95:
        values["labels_lost_in_warping"] = summary.unmeasured_hd95
    return values


def describe(values: dict[str, Any]) -> str:
    parts = [f"{values['pairs']} pairs"]
    parts += [
        f"{metric} {values[metric]['mean']:.4g} ± {values[metric]['std']:.2g}" for metric in METRICS if metric in values
    ]
    return ", ".join(parts)


def read_provenance(folder: Path) -> list[dict[str, Any]]:
    """Read what registered the pairs of a folder: usually one model on one device."""
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        content = read_json(path)
        entry = content.get("provenance") if isinstance(content, dict) else None
        if entry is not None and entry not in found:
            found.append(entry)
    return found


if __name__ == "__main__":
    main()
