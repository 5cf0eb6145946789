"""Seconds and memory of one training step, by stage: forward, objective, backward, optimiser.

Each combination of encoder and consistency runs in a fresh process, so that none inherits another's memory.
"""

import argparse
import dataclasses
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from peer_networks import Peer, build_peer
from result_file import RESULTS, warn_if_busy, write_result
from torch import Tensor, nn

from biasreg.core.serialization import read_record
from biasreg.losses.objective import ObjectiveSettings, PairBatch, RegistrationOutput, objective
from biasreg.network.blocks import ConvolutionBlock
from biasreg.network.build import build_network
from biasreg.network.device import autocast, select_device
from biasreg.network.encoder import ResidualBlock
from biasreg.planning.plans import EncoderPlans, LossWeights, NetworkPlans, Plans
from biasreg.training.optimization import build_optimizer
from biasreg.training.step_memory import random_pairs, read_memory, reset_peak

Kernels = Literal["plain", "channels_last", "compiled"]
COMPILED = (ConvolutionBlock, ResidualBlock)
STAGES = ("forward", "objective", "backward", "optimizer")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What one process measures.

    Attributes:
        network: Shape of the network.
        size: Shape of the grid in voxels.
        objective: Settings of the loss.
        device: Device to run on; None for the best there is.
        threads: Threads of torch; None for its default.
        warmup: Steps before the measurement.
        steps: Steps that are measured.
        kernels: As training does it (`plain`), with the channels of images and weights last in memory, or with compiled
            convolution blocks.
        peer: Whose network is measured in place of ours; None for ours.
    """

    network: NetworkPlans
    size: tuple[int, ...]
    objective: ObjectiveSettings
    device: str | None
    threads: int | None
    warmup: int
    steps: int
    kernels: Kernels = "plain"
    peer: Peer | None = None


class StopWatch:
    """Adds up the wall time of stages; on CUDA it waits for the device.

    Attributes:
        seconds: Time by stage.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def time(self, stage: str, function: Callable[[], Any]) -> Any:
        """Call a function, and add its time to a stage."""
        start = self._now()
        result = function()
        self.seconds[stage] += self._now() - start
        return result

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def main() -> None:
    arguments = parse_arguments()
    warn_if_busy()
    results = []
    for encoder, consistency, kernels in itertools.product(
        arguments.encoders, arguments.consistency, arguments.kernels
    ):
        settings = make_settings(arguments, encoder, with_consistency=consistency == "on")
        result = measure_apart(dataclasses.replace(settings, kernels=kernels))
        results.append({"encoder": encoder, "consistency": consistency, "kernels": kernels, **result})
        print_result(results[-1])
    for peer in arguments.peers:
        settings = make_settings(arguments, arguments.encoders[0], with_consistency=False)
        result = measure_apart(dataclasses.replace(settings, peer=peer))
        results.append({"encoder": peer, "consistency": "off", "kernels": "plain", **result})
        print_result(results[-1])
    recorded = {name: value for name, value in vars(arguments).items() if name != "output"}
    recorded["plans"] = None if arguments.plans is None else arguments.plans.name
    write_result(arguments.output, recorded, results, device=results[-1]["device"])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--plans", type=Path, help="plans to measure; without them the sizes below count")
    parser.add_argument("--configuration", help="configuration of the plans (default: the plans' own)")
    parser.add_argument("--size", type=int, nargs=3, default=[48, 64, 48], help="grid in voxels")
    parser.add_argument("--feature_size", type=int, default=12, help="width of the encoder")
    parser.add_argument("--stages", type=int, default=2, help="stages of the encoder")
    parser.add_argument("--blocks", type=int, default=1, help="blocks per stage")
    parser.add_argument("--window", type=int, default=4, help="side of the attention window in tokens")
    parser.add_argument("--decoder_channels", type=int, nargs="+", default=[8, 16, 16, 32], help="finest first")
    parser.add_argument("--labels", type=int, default=3, help="labels with background")
    parser.add_argument("--encoders", nargs="+", default=["swin", "residual"], choices=["swin", "residual"])
    parser.add_argument("--consistency", nargs="+", default=["on", "off"], choices=["on", "off"], help="the ARDC pass")
    parser.add_argument("--kernels", nargs="+", default=["plain"], choices=get_args(Kernels), help="how blocks are run")
    parser.add_argument(
        "--peers",
        nargs="+",
        default=[],
        choices=get_args(Peer),
        help="networks of others to measure too, as far as they have the outputs; needs voxelmorph, einops",
    )
    parser.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the measurement")
    parser.add_argument("--steps", type=int, default=10, help="steps that are measured")
    parser.add_argument("--output", type=Path, default=RESULTS / "training_step.json", help="result file")
    return parser.parse_args()


def make_settings(arguments: argparse.Namespace, encoder: str, *, with_consistency: bool) -> Settings:
    """Take the sizes from the plans, or else from the arguments."""
    weight = 1.0 if with_consistency else 0.0
    if arguments.plans is not None:
        plans = read_record(arguments.plans, Plans)
        chosen = plans.configurations[arguments.configuration or plans.default_configuration]
        network, size, spacing = chosen.network, chosen.preprocessing.patch_size, chosen.preprocessing.spacing
        labels_per_step = chosen.training.labels_per_step
    else:
        network, size, spacing = network_of_arguments(arguments), tuple(arguments.size), (1.0, 1.0, 1.0)
        labels_per_step = 8
    network = dataclasses.replace(network, encoder=dataclasses.replace(network.encoder, family=encoder))
    weights = LossWeights(1.0, 1.0, 1.0, 1.0, weight)
    loss = ObjectiveSettings("lncc", 9, weights, spacing, network.num_labels, labels_per_step)
    return Settings(network, size, loss, arguments.device, arguments.threads, arguments.warmup, arguments.steps)


def network_of_arguments(arguments: argparse.Namespace) -> NetworkPlans:
    stages = arguments.stages
    heads = tuple(3 * 2**stage for stage in range(stages))
    encoder = EncoderPlans(
        "swin",
        "scratch",
        "full",
        None,
        arguments.feature_size,
        (arguments.blocks,) * stages,
        heads,
        arguments.window,
        ((2, 2, 2),) * (stages + 1),
    )
    return NetworkPlans(
        in_channels=1,
        num_labels=arguments.labels,
        encoder=encoder,
        decoder_channels=tuple(arguments.decoder_channels),
        registration_levels=min(4, stages + 2),
        segmentation_level=0,
        integration_steps=7,
        correlation_levels=(),
        streams="both",
        biaf=True,
        mac=True,
        checkpointing=False,
    )


def measure_apart(settings: Settings) -> dict[str, Any]:
    """Measure in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (settings,))


def measure(settings: Settings) -> dict[str, Any]:
    """Train a few steps on random images and blocks of labels."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = select_device(settings.device)
    torch.manual_seed(0)
    if settings.peer is None:
        network: nn.Module = build_network(settings.network).to(device)
    else:
        network = build_peer(settings.peer, settings.network.in_channels).to(device)
    optimizer = build_optimizer(network, 1e-4)
    batch = random_pairs(settings.network, settings.size, 1, device)
    if settings.kernels == "channels_last":
        last = torch.channels_last_3d
        network = network.to(memory_format=last)
        batch = batch._replace(moving=batch.moving.to(memory_format=last), fixed=batch.fixed.to(memory_format=last))
    elif settings.kernels == "compiled":
        for block in network.modules():
            if isinstance(block, COMPILED):
                block.compile()
    reset_peak(device)
    before = read_memory(device).current
    steps = [run_step(network, optimizer, batch, settings.objective) for _ in range(settings.warmup + settings.steps)]
    used = read_memory(device).peak - before
    seconds = {stage: statistics.median(step[stage] for step in steps[settings.warmup :]) for stage in STAGES}
    voxels = batch.fixed[0, 0].numel()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "size": list(batch.fixed.shape[2:]),
        "million_parameters": round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 3),
        "seconds": {stage: round(value, 4) for stage, value in seconds.items()},
        "seconds_per_step": round(statistics.median(sum(step.values()) for step in steps[settings.warmup :]), 4),
        "peak_memory_gib": round(used / 2**30, 3),
        "bytes_per_voxel_and_channel": round(used / (voxels * settings.network.decoder_channels[0]), 1),
    }


def run_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, batch: PairBatch, settings: ObjectiveSettings
) -> dict[str, float]:
    """Do what training does in a step, and time its stages; `objective` is what the losses add to the passes."""
    watch = StopWatch(batch.fixed.device)

    def timed_network(moving: Tensor, fixed: Tensor) -> RegistrationOutput:
        output: RegistrationOutput = watch.time("forward", lambda: network(moving, fixed))
        return output

    def loss() -> Tensor:
        generators = [torch.Generator().manual_seed(0)]
        with autocast(batch.fixed.device):
            return objective(timed_network, batch, settings, consistency_scale=1.0, generators=generators).total

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12.0)
        optimizer.step()

    optimizer.zero_grad(set_to_none=True)
    total: Tensor = watch.time("objective", loss)
    watch.seconds["objective"] -= watch.seconds["forward"]
    watch.time("backward", total.backward)
    watch.time("optimizer", update)
    return watch.seconds


def print_result(result: dict[str, Any]) -> None:
    stages = ", ".join(f"{stage} {value:.3f}" for stage, value in result["seconds"].items())
    size = "×".join(str(side) for side in result["size"])
    print(f"{result['encoder']}, consistency {result['consistency']}, {result['kernels']}, {size}, {result['device']}:")
    print(
        f"  {result['million_parameters']} million parameters, {result['seconds_per_step']:.3f} s per step ({stages})"
    )
    print(
        f"  peak memory {result['peak_memory_gib']} GiB: {result['bytes_per_voxel_and_channel']:.0f} bytes per voxel "
        "and channel"
    )


if __name__ == "__main__":
    main()
