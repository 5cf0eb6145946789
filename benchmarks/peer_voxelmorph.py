"""Train VoxelMorph on a fold's pairs and register the test pairs, as fields that `biasreg_evaluate --method` takes.

VoxelMorph's network alone is put in place of biasreg's: pre-alignment, grid, training cases, augmentation, similarity,
smoothness and overlap of labels are the same, without what VoxelMorph has not (segmentations, ARDC). It trains for a
given processor time.

Needs VoxelMorph beside biasreg: pip install voxelmorph==0.3.4

Source: Balakrishnan et al., VoxelMorph, IEEE TMI 2019, arXiv:1809.05231; weak supervision as its section on auxiliary
data. https://pypi.org/project/voxelmorph
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peer_networks import VoxelMorph
from result_file import RESULTS, write_result

from biasreg.core.pairs import read_pairs
from biasreg.core.paths import Roots
from biasreg.core.transform_io import write_displacement
from biasreg.inference.estimation import RegistrationOptions
from biasreg.inference.predictor import Predictor
from biasreg.losses.objective import objective
from biasreg.planning.plans import DEFAULT_PLANS_NAME, Configuration
from biasreg.preprocessing.frames import read_frame_source
from biasreg.training.assembly import case_source
from biasreg.training.augmentation import augment_pairs, pair_generator
from biasreg.training.data import LoaderSettings, make_batch, to_device
from biasreg.training.optimization import take_step
from biasreg.training.step_memory import objective_settings
from biasreg.training.trainer import AUGMENTATION_STREAM, OBJECTIVE_STREAM
from biasreg.training.workspace import FoldData, Workspace, open_workspace, read_fold_data

LEARNING_RATE = 1e-4  # VoxelMorph's own; see --learning_rate
REPORT_EVERY = 250


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    roots = Roots(arguments.root / "raw", arguments.root / "preprocessed", arguments.root / "results")
    workspace = open_workspace(roots, arguments.dataset, DEFAULT_PLANS_NAME, arguments.configuration)
    data = read_fold_data(workspace, arguments.fold)
    network = VoxelMorph(workspace.configuration.network.in_channels)
    history = train(network, workspace, data, arguments)
    seconds = register_all(network, workspace, arguments)
    settings = {
        name: value for name, value in vars(arguments).items() if name not in ("root", "pairs", "fields", "output")
    }
    parameters = sum(each.numel() for each in network.parameters())
    results = {"million_parameters": parameters / 1e6, "seconds_per_pair": statistics.median(seconds), **history}
    write_result(arguments.output, settings, results, device="cpu")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="a raw dataset with test pairs, or what biasreg_predict takes")
    parser.add_argument("fields", type=Path, help="folder of the fields")
    parser.add_argument("-d", "--dataset", required=True, help="dataset, planned and preprocessed")
    parser.add_argument("-cfg", "--configuration", help="configuration (default: the plans' own)")
    parser.add_argument("--fold", type=int, default=0, help="fold")
    parser.add_argument("--root", type=Path, default=Path("biasreg_data"), help="folder of raw, preprocessed, results")
    parser.add_argument("--seconds", type=float, required=True, help="processor time of the training")
    parser.add_argument("--learning_rate", type=float, default=LEARNING_RATE, help="Adam's learning rate")
    parser.add_argument("--seed", type=int, default=1, help="seed")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--output", type=Path, default=RESULTS / "peer_voxelmorph.json", help="result file")
    return parser.parse_args()


def train(network: VoxelMorph, workspace: Workspace, data: FoldData, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train until the processor time is over; the losses, averaged over some steps each, tell whether it has learnt."""
    plans, source = workspace.configuration.training, case_source(workspace, data)
    loader = LoaderSettings(plans.batch_size, arguments.seed, plans.augmentation.probability, workers=0)
    optimizer = torch.optim.Adam(network.parameters(), lr=arguments.learning_rate)
    losses, recent, steps, started = list[dict[str, float]](), list[dict[str, float]](), 0, time.process_time()
    while time.process_time() - started < arguments.seconds:
        batch = make_batch(source, data.sampler, loader, steps)
        streams = [
            [pair_generator(arguments.seed, number, stream) for number in batch.numbers]
            for stream in (AUGMENTATION_STREAM, OBJECTIVE_STREAM)
        ]
        pairs = to_device(batch, torch.device("cpu"))
        pairs = augment_pairs(pairs, plans.augmentation, workspace.configuration.preprocessing.spacing, streams[0])
        terms = objective(
            network, pairs, settings_of(workspace.configuration), consistency_scale=0.0, generators=streams[1]
        )
        take_step(terms, optimizer, plans.gradient_clip, lambda values: values)
        recent.append({name: float(value) for name, value in terms.terms.items()})
        steps += 1
        if steps % REPORT_EVERY == 0:
            losses.append(mean_of(recent))
            recent.clear()
            print(f"step {steps}, {time.process_time() - started:.0f} s: {losses[-1]}", flush=True)
    return {"steps": steps, "losses": losses}


def mean_of(losses: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.mean(each[name] for each in losses), 4) for name in losses[0]}


def settings_of(configuration: Configuration) -> Any:
    """Leave out what VoxelMorph cannot do."""
    settings = objective_settings(configuration)
    return replace(settings, weights=replace(settings.weights, segmentation=0.0, consistency=0.0))


def register_all(network: VoxelMorph, workspace: Workspace, arguments: argparse.Namespace) -> list[float]:
    """Write `<pair>_warp.nii.gz` of each pair, and give the seconds that each took."""
    arguments.fields.mkdir(parents=True, exist_ok=True)
    configuration = workspace.configuration
    frames = read_frame_source(configuration.preprocessing, workspace.cases_folder)
    alone = RegistrationOptions(refine_steps=0)
    predictor = Predictor([network], frames, configuration, torch.device("cpu"), alone)  # type: ignore[list-item]
    seconds = []
    for pair in read_pairs(arguments.pairs).pairs:
        started = time.perf_counter()
        found = predictor.register(pair.moving, pair.fixed)
        seconds.append(time.perf_counter() - started)
        write_displacement(arguments.fields / f"{pair.identifier}_warp.nii.gz", found.displacement, found.fixed)
    return seconds


if __name__ == "__main__":
    main()
