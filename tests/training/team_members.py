"""What the processes of a team do in the tests; spawned processes import it by this name."""

import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import nn

from biasreg.cli.run import run_command
from biasreg.core.errors import InputError
from biasreg.core.paths import Roots
from biasreg.losses.objective import ObjectiveSettings, PairBatch, objective
from biasreg.network.build import build_network
from biasreg.planning.plans import Configuration
from biasreg.training.distributed import Seat, join_team
from biasreg.training.fold import train_fold
from biasreg.training.optimization import take_step
from biasreg.training.options import TrainingOptions

CPU = torch.device("cpu")


def train(seat: Seat, roots: Roots, options: TrainingOptions) -> int:
    """Train in a process of a team."""
    torch.set_num_threads(1)
    train_fold(roots, "901", 0, options, seat)
    return 0


def talk(seat: Seat, folder: Path) -> int:
    """Use every method of a team, and note what this process got."""
    warnings.simplefilter("error")  # pytest's filters do not reach this process
    with join_team(seat, CPU) as team:
        layer = nn.Linear(1, 1, bias=False)
        replica = team.replicate(layer)
        replica(torch.tensor([[float(seat.rank)]])).sum().backward()
        heard = {
            "writes": team.writes,
            "mean": team.mean(torch.tensor([float(seat.rank)])).item(),
            "any": [team.any(seat.rank == 1), team.any(False)],
            "collected": team.collect([2 * item for item in team.share(range(5))]),
            "first": team.by_first(lambda: seat.rank),
            "gradient": layer.weight.grad.item(),
            "own": team.collect([team.together(lambda: seat.rank)]),
        }
    (folder / f"{seat.rank}.json").write_text(json.dumps(heard))
    return 0


def step(seat: Seat, folder: Path, configuration: Configuration, batch: PairBatch) -> int:
    """Take a training step with the share of a batch; note its forward passes, and what the weights have become."""
    if seat.size > 1:
        signal.alarm(120)  # were the processes to wait for each other, the first one would end here
    torch.set_num_threads(1)
    with join_team(seat, CPU) as team:
        torch.manual_seed(0)
        network = build_network(configuration.network)
        passes: list[None] = []
        network.register_forward_hook(lambda *_: passes.append(None))
        replica = team.replicate(network)  # must live until the backward pass, in which it averages
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        share = PairBatch(*(torch.stack(tuple(team.share(entry.unbind()))) for entry in batch))
        numbers = team.share(range(len(batch.moving)))
        settings = ObjectiveSettings("lncc", 5, configuration.training.weights, (2.0, 2.0, 2.0), 3, 2)
        terms = objective(
            replica,
            share,
            settings,
            consistency_scale=1.0,
            generators=[torch.Generator().manual_seed(number) for number in numbers],
        )
        outcome = take_step(terms, optimizer, 12.0, team.mean)
    torch.save((len(passes), outcome._asdict(), network.state_dict()), folder / f"{seat.rank}_of_{seat.size}.pt")
    return 0


def fail(seat: Seat, how: str) -> int:
    """Fail in one process, while the other waits for it."""
    with join_team(seat, CPU) as team:
        if how == "unusable":
            return run_command(lambda: team.by_first(refuse))
        if how in {"alike", "apart"}:
            where = seat.rank if how == "apart" else ""
            return run_command(lambda: team.together(lambda: refuse(f"this cannot be used{where}")))
        if seat.rank == 1 and how == "raise":
            raise RuntimeError("the second process has a bug")
        if seat.rank == 1 and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if seat.rank == 1:
            return 7
        team.any(True)
    return 0


def refuse(why: str = "the first process cannot use this") -> int:
    """Find the input unusable."""
    raise InputError(why)


def prepare(seat: Seat, folder: Path) -> int:
    """Be at something that does not look out for signals."""
    (folder / f"{seat.rank}.ready").touch()
    time.sleep(60)
    return 1


def wait_for_signal(seat: Seat, folder: Path) -> int:
    """End with the code of the signal that arrives."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    (folder / f"{seat.rank}.ready").touch()
    time.sleep(60)
    return 1
