"""Several processes that train one network: each takes its share of every batch, and one of them writes."""

import datetime
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from biasreg.core.errors import InputError

Item = TypeVar("Item")
# A process that waits longer than this for another gives up. It must outlast all that the first one does alone: to
# check the data of a large dataset, to try training steps until one fits the device (minutes each on a CPU), to write a
# checkpoint to a slow disk. It may be long: when a process dies, `launch` or torchrun ends the others within seconds.
# So this is for a process that hangs, and for a computer that vanishes.
PATIENCE = datetime.timedelta(hours=2)


class Seat(NamedTuple):
    """The place of this process among those that train together.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
        local_rank: Its number on this computer, which is also that of its GPU.
        local_size: How many there are on this computer.
        address: Where they meet, as torch.distributed writes it; `env://` is where torchrun says.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = "env://"


ALONE = Seat()


@dataclass(frozen=True)
class Team:
    """The processes that train together; all of them call each method in the same order.

    Attributes:
        seat: Place of this process.
        device: Where it computes, and what it talks to the others with.
    """

    seat: Seat
    device: torch.device

    @property
    def is_alone(self) -> bool:
        """Whether this process trains by itself."""
        return self.seat.size == 1

    @property
    def writes(self) -> bool:
        """Whether it is this process that writes checkpoints and records."""
        return self.seat.rank == 0

    def replicate(self, network: nn.Module) -> nn.Module:
        """Give the network in a form whose backward pass averages the gradients of all processes."""
        if self.is_alone:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        # Buffers are constants; to send them in each forward pass would break where processes pass a different number
        # of times. torch has renamed the switch.
        known = inspect.signature(DistributedDataParallel).parameters
        switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {"device_ids": devices, "gradient_as_bucket_view": True, switch: False}
        return DistributedDataParallel(network, **options)

    def mean(self, values: Tensor) -> Tensor:
        """Average a tensor over all processes."""
        if not self.is_alone:
            dist.all_reduce(values)
            values /= self.seat.size
        return values

    def any(self, flag: bool) -> bool:
        """Tell whether a flag is set in any process."""
        if self.is_alone:
            return flag
        flags = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(flags)
        return bool(flags.item() > 0)

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Take every `size`-th item, beginning with that of this process's rank."""
        return items[self.seat.rank :: self.seat.size]

    def collect(self, items: Sequence[Item]) -> tuple[Item, ...]:
        """Put the results of `share` back into the order of all items; every process gets them."""
        if self.is_alone:
            return tuple(items)
        shares: list[Sequence[Item]] = [()] * self.seat.size
        dist.all_gather_object(shares, items)
        count = sum(len(each) for each in shares)
        return tuple(shares[index % self.seat.size][index // self.seat.size] for index in range(count))

    def together(self, make: Callable[[], Item]) -> Item:
        """Let every process do the same, without talking to the others, and give each its own result.

        An error of one ends all: of those with the same error the first alone raises it, and so says why; the others
        exit with its code.
        """
        if self.is_alone:
            return make()
        item: Item | None = None
        error: Exception | None = None
        try:
            item = make()
        except Exception as caught:  # of any kind, or else the others wait for this process in vain
            error = caught
        fault = None if error is None else (f"{type(error).__name__}: {error}", getattr(error, "exit_code", 1))
        faults: list[tuple[str, int] | None] = [None] * self.seat.size
        dist.all_gather_object(faults, fault)
        if error is not None and fault not in faults[: self.seat.rank]:
            raise error
        for each in faults:
            if each is not None:
                sys.exit(each[1])
        return cast("Item", item)

    def by_first(self, make: Callable[[], Item]) -> Item:
        """Let the first process do something, and give every process what it returned.

        An error of the first one ends all: it alone says why, the others exit with its code.
        """
        if self.is_alone:
            return make()
        made = [self.together(lambda: make() if self.writes else None)]
        dist.broadcast_object_list(made, src=0, device=self.device)
        return cast("Item", made[0])


def seat_from(environment: Mapping[str, str]) -> Seat:
    """Read from the environment where torchrun has put this process.

    Args:
        environment: Environment variables of the process.

    Returns:
        The seat; `ALONE` where torchrun did not start it.

    Raises:
        InputError: If only some of the variables are there, or they are no numbers.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "TORCHELASTIC_RUN_ID" not in environment:  # Slurm and others set WORLD_SIZE too
        return ALONE
    try:
        rank, size, local_rank, local_size = (int(environment[name]) for name in names)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"torchrun's variables {', '.join(names)} are incomplete ({error}) · start training with torchrun"
        ) from error
    return Seat(rank, size, local_rank, local_size)


@contextmanager
def join_team(seat: Seat, device: torch.device) -> Iterator[Team]:
    """Meet the other processes.

    Args:
        seat: Place of this process.
        device: Where it computes; `cuda` becomes the GPU of its own.

    Yields:
        The team.

    Raises:
        InputError: If there are fewer GPUs on this computer than processes.
    """
    if seat.size == 1:
        yield Team(seat, device)
        return
    if device.type == "cuda":
        require_gpus(seat.local_rank + 1)
        device = torch.device("cuda", seat.local_rank)
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=seat.address, rank=seat.rank, world_size=seat.size, timeout=PATIENCE)
    try:
        yield Team(seat, device)
    finally:
        dist.destroy_process_group()


def require_gpus(count: int) -> None:
    """Refuse more processes than GPUs.

    Args:
        count: Number of processes on this computer.

    Raises:
        InputError: If there are fewer GPUs.
    """
    found = torch.cuda.device_count()
    if count > found:
        raise InputError(f"{count} processes need as many GPUs, and this computer has {found} · start {found} of them")
