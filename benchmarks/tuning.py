"""What should train of an encoder that has learnt elsewhere: nothing, adapters (LoRA), or all of it.

VoCo's encoders take a GPU. So the start is a narrow Swin encoder, as wide as the plans have theirs, that has learnt to
register another dataset. From the same start it is then kept frozen, adapted, or trained on, with new decoders, and
compared with one from scratch; recipe, pairs and code are those of training.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from recipe import add_training_arguments, changed, describe, roots_of, settings_of, train
from result_file import RESULTS, warn_if_busy, write_result
from torch import Tensor

from biasreg.network.biasnet import BIASNet
from biasreg.network.device import select_device
from biasreg.network.lora import add_lora
from biasreg.planning.encoder_rules import LORA_ALPHA, LORA_RANK
from biasreg.training.assembly import make_network
from biasreg.training.workspace import Workspace, open_workspace

TUNINGS = ("scratch", "frozen", "lora", "full")
SWIN = ["network.encoder.family=swin"]


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    warn_if_busy()
    device = select_device(arguments.device)
    start, learnt = learn_start(arguments, device)
    print(f"start, on {arguments.source}:", describe(learnt), flush=True)
    results: list[dict[str, Any]] = [{"tuning": "start", "seed": arguments.source_seed, **learnt}]
    workspace = changed(open_workspace(roots_of(arguments), arguments.dataset, arguments.plans, None), SWIN)
    for seed in arguments.seeds:
        for tuning in TUNINGS:
            network = tuned_network(workspace, tuning, start, seed, device)
            trained = sum(each.numel() for each in network.encoder.parameters() if each.requires_grad)
            _, result = train(workspace, arguments, seed, device, network)
            results.append({"tuning": tuning, "seed": seed, "encoder_parameters_trained": trained, **result})
            print(f"{tuning}, seed {seed}, {trained} of the encoder train:", describe(result), flush=True)
            write_result(arguments.output, settings_of(arguments), results, device=str(device))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_arguments(parser)
    parser.add_argument("--source", required=True, help="dataset that the start is trained on, planned likewise")
    parser.add_argument("--source_epochs", type=int, default=10, help="epochs of the start")
    parser.add_argument("--source_seed", type=int, default=1, help="seed of the start")
    parser.add_argument("--output", type=Path, default=RESULTS / "tuning.json", help="result file")
    return parser.parse_args()


def learn_start(arguments: argparse.Namespace, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train the source's network, and keep its encoder."""
    workspace = changed(open_workspace(roots_of(arguments), arguments.source, arguments.plans, None), SWIN)
    longer = argparse.Namespace(**{**vars(arguments), "epochs": arguments.source_epochs})
    network, result = train(workspace, longer, arguments.source_seed, device)
    return network.get_submodule("encoder").state_dict(), result


def tuned_network(
    workspace: Workspace, tuning: str, start: dict[str, Tensor], seed: int, device: torch.device
) -> BIASNet:
    """Make a network whose encoder starts and trains as is to be measured."""
    torch.manual_seed(seed)
    network = make_network(workspace, torch.device("cpu"))
    if tuning != "scratch":
        network.encoder.load_state_dict(start)
    if tuning == "frozen":
        network.encoder.requires_grad_(False)
    if tuning == "lora":
        add_lora(network.encoder, LORA_RANK, LORA_ALPHA, mlp=False)
    return network.to(device)


if __name__ == "__main__":
    main()
