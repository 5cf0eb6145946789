"""What a change of recipe or network is worth: short trainings of a planned dataset, scored on its validation pairs.

Each variant trains anew from the same seed, with a learning rate that decays over its own steps, in a folder that is
thrown away. Pairs, validation pairs and code are those of training.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from result_file import RESULTS, warn_if_busy, write_result

from biasreg.core.paths import Roots
from biasreg.losses.objective import PairBatch
from biasreg.network.biasnet import BIASNet
from biasreg.network.checkpoint import Identity, RunSettings
from biasreg.network.device import autocast, select_device
from biasreg.planning.overrides import apply_changes
from biasreg.planning.plans import DEFAULT_PLANS_NAME
from biasreg.spatial.jacobian import jacobian_determinant
from biasreg.training.assembly import build_trainer, case_source
from biasreg.training.data import to_device
from biasreg.training.distributed import ALONE, Team
from biasreg.training.options import TrainingOptions
from biasreg.training.recipe import Home
from biasreg.training.workspace import Workspace, open_workspace, read_fold_data

ROUGHNESS_PAIRS = 6
SMALLEST_DETERMINANT = 1e-3  # below it, log J says more of the floor than of the field


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    warn_if_busy()
    device = select_device(arguments.device)
    results = []
    for variant in arguments.variant or [["default"]]:
        name, *changes = variant
        for seed in arguments.seeds:
            _, result = train(open_variant(arguments, changes), arguments, seed, device)
            results.append({"variant": name, "changes": changes, "seed": seed, **result})
            print(name, f"seed {seed}:", describe(result), flush=True)
            write_result(arguments.output, settings_of(arguments), results, device=str(device))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_arguments(parser)
    parser.add_argument("-cfg", "--configuration", help="configuration (default: the plans' own)")
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        metavar=("NAME", "FIELD=VALUE"),
        help="a name, and changes of the plans as --set takes them, or ablate=PART,PART; may be given several times",
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "recipe.json", help="result file")
    return parser.parse_args()


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is trained, and how long."""
    parser.add_argument("-d", "--dataset", required=True, help="dataset, planned and preprocessed")
    parser.add_argument("-p", "--plans", default=DEFAULT_PLANS_NAME, help="name of the plans")
    parser.add_argument("--fold", type=int, default=0, help="fold")
    parser.add_argument("--root", type=Path, default=Path("biasreg_data"), help="folder of raw, preprocessed, results")
    parser.add_argument("--epochs", type=int, default=10, help="epochs")
    parser.add_argument("--steps", type=int, default=50, help="steps per epoch")
    parser.add_argument("--validate_every", type=int, default=5, help="validate after every so many epochs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="seeds")
    parser.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")


def roots_of(arguments: argparse.Namespace) -> Roots:
    return Roots(arguments.root / "raw", arguments.root / "preprocessed", arguments.root / "results")


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Give the arguments that a result depends on."""
    return {key: value for key, value in vars(arguments).items() if key not in ("output", "root")}


def open_variant(arguments: argparse.Namespace, changes: list[str]) -> Workspace:
    """Open the dataset with changed plans."""
    parts = [part for change in changes if change.startswith("ablate=") for part in change[7:].split(",")]
    workspace = open_workspace(roots_of(arguments), arguments.dataset, arguments.plans, arguments.configuration, parts)
    return changed(workspace, [change for change in changes if not change.startswith("ablate=")])


def train(
    workspace: Workspace, arguments: argparse.Namespace, seed: int, device: torch.device, network: BIASNet | None = None
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Train, and collect what the epochs and the field say; the network is the one that would predict."""
    data = read_fold_data(workspace, arguments.fold)
    options = TrainingOptions(
        epochs=arguments.epochs,
        iterations_per_epoch=arguments.steps,
        seed=seed,
        num_workers=0,
        validate_every=arguments.validate_every,
        picture_every=0,
    )
    settings = RunSettings(arguments.fold, arguments.epochs, arguments.steps, seed, "benchmark")
    plans = workspace.plans
    identity = Identity(
        plans.dataset_name, plans.plans_name, workspace.configuration_name, workspace.configuration, None, settings
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(workspace, data, Home(Path(folder), identity), options, Team(ALONE, device), network)
        started = time.process_time()
        trainer.run()
        seconds = time.process_time() - started
    source = case_source(workspace, data)
    batches = [to_device(source.batch((pair,)), device) for pair in data.validation[:ROUGHNESS_PAIRS]]
    history = trainer.progress.history
    return trainer.evaluated, {
        "million_parameters": round(sum(each.numel() for each in trainer.network.parameters()) / 1e6, 3),
        "processor_seconds": round(seconds),
        "median_step_seconds": statistics.median(each.step_seconds or 0.0 for each in history),
        "validation": [
            {"iteration": each.iteration, "dice": each.dice_after, "folding_percent": each.folding_percent}
            for each in history
            if each.dice_after is not None
        ],
        "dice_before": history[-1].dice_before,
        "losses": history[-1].losses,
        "sd_log_jacobian": statistics.mean(roughness(trainer.evaluated, batch) for batch in batches),
    }


def changed(workspace: Workspace, changes: list[str]) -> Workspace:
    """Change the plans of the configuration that is trained."""
    if not changes:
        return workspace
    name = workspace.configuration_name
    return replace(workspace, plans=apply_changes(workspace.plans, [f"{name}.{change}" for change in changes]))


@torch.inference_mode()
def roughness(network: torch.nn.Module, batch: PairBatch) -> float:
    """Standard deviation of log J over the grid."""
    with autocast(batch.moving.device):
        displacement = network(batch.moving, batch.fixed).displacement
    return float(jacobian_determinant(displacement.float()).clamp(min=SMALLEST_DETERMINANT).log().std())


def describe(result: dict[str, Any]) -> str:
    scores = ", ".join(f"{each['dice']:.4f} after {each['iteration']}" for each in result["validation"])
    return f"Dice {scores}; SD log J {result['sd_log_jacobian']:.2f}; {result['processor_seconds']} processor seconds"


if __name__ == "__main__":
    main()
