"""Predicted against measured peak memory of a training step, for each configuration of plans.

Each step runs in a fresh process, so that none inherits another's memory.
"""

import argparse
import multiprocessing
from pathlib import Path
from typing import Any

import torch
from result_file import RESULTS, write_result

from biasreg.core.serialization import read_record
from biasreg.network.device import select_device
from biasreg.planning.plans import Configuration, Plans
from biasreg.training.fit import predicted_gib
from biasreg.training.step_memory import measure_step_gib


def main() -> None:
    arguments = parse_arguments()
    results = []
    for path in arguments.plans:
        for name, configuration in read_record(path, Plans).configurations.items():
            if predicted_gib(configuration, select_device(arguments.device)) > arguments.most_gib:
                continue
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                measured = pool.apply(measure, (configuration, arguments.device))
            results.append({"plans": path.stem, "dataset": path.parent.name, "configuration": name, **measured})
            print(results[-1], flush=True)
    recorded = {"plans": [path.name for path in arguments.plans], "most_gib": arguments.most_gib}
    write_result(arguments.output, recorded, results, device=results[-1]["device"])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("plans", type=Path, nargs="+", help="files of plans")
    parser.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    parser.add_argument("--most_gib", type=float, default=10.0, help="leave out what is predicted to take more")
    parser.add_argument("--output", type=Path, default=RESULTS / "step_memory.json", help="result file")
    return parser.parse_args()


def measure(configuration: Configuration, device_name: str | None) -> dict[str, Any]:
    """Measure one step in this process."""
    device = select_device(device_name)
    measured, predicted = measure_step_gib(configuration, device), predicted_gib(configuration, device)
    network = configuration.network
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "size": list(configuration.preprocessing.patch_size),
        "encoder": f"{network.encoder.family} {network.encoder.feature_size}",
        "decoder_channels": list(network.decoder_channels),
        "num_labels": network.num_labels,
        "checkpointing": network.checkpointing,
        "pairs": configuration.training.batch_size,
        "predicted_gib": round(predicted, 3),
        "measured_gib": round(measured, 3),
        "error_percent": round(100 * (predicted / measured - 1), 1),
    }


if __name__ == "__main__":
    main()
