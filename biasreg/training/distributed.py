"""Several processes that train one network: each takes its share of every batch, and one of them writes."""

import datetime
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes
from torch.nn.parallel import DistributedDataParallel

from biasreg.core.errors import InputError, TrainingError

Item = TypeVar("Item")
# A process that waits longer than this for another takes it for dead; the slowest thing that only one does is to
# write a checkpoint to a network disk.
PATIENCE = datetime.timedelta(minutes=10)
GRACE_SECONDS = 30.0  # between asking the others to end, when one has failed, and killing them


class Seat(NamedTuple):
    """The place of this process among those that train together.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
        local_rank: Its number on this computer, which is also that of its GPU.
        address: Where they meet, as torch.distributed writes it; `env://` is where torchrun says.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
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
        return DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False)

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

    def of_first(self, item: Item) -> Item:
        """Give every process what the first one has; the others' item is not looked at."""
        if self.is_alone:
            return item
        items = [item]
        dist.broadcast_object_list(items, src=0, device=self.device)
        return items[0]


def seat_from(environment: Mapping[str, str]) -> Seat:
    """Read from the environment where torchrun has put this process.

    Args:
        environment: Environment variables of the process.

    Returns:
        The seat; `ALONE` where torchrun did not start it.

    Raises:
        InputError: If only some of the variables are there, or they are no numbers.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "TORCHELASTIC_RUN_ID" not in environment:  # Slurm and others set WORLD_SIZE too
        return ALONE
    try:
        rank, size, local_rank = (int(environment[name]) for name in names)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"torchrun's variables {', '.join(names)} are incomplete ({error}) · start training with torchrun"
        ) from error
    return Seat(rank, size, local_rank)


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
        if seat.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"process {seat.local_rank} has no GPU: this computer has {torch.cuda.device_count()} · start as many "
                "processes as there are GPUs"
            )
        device = torch.device("cuda", seat.local_rank)
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=seat.address, rank=seat.rank, world_size=seat.size, timeout=PATIENCE)
    try:
        yield Team(seat, device)
    finally:
        dist.destroy_process_group()


def launch(function: Callable[[Seat], int], size: int) -> int:
    """Call a function in several processes of this computer that train together, and wait for all of them.

    Ctrl-C reaches the processes by itself; SIGTERM, which schedulers send to this process alone, is passed on. When
    one process fails, the others are ended.

    Args:
        function: Called with the seat of its process; can be pickled; returns an exit code.
        size: Number of processes.

    Returns:
        0 if all of them returned 0, else the exit code of the one that failed first.

    Raises:
        TrainingError: With the traceback of a process that raised an exception.
    """
    with tempfile.TemporaryDirectory() as folder:
        address = f"file://{folder}/meeting"
        context = start_processes(_take_seat, (function, size, address), nprocs=size, join=False, start_method="spawn")
        assert context is not None  # it would be, had it been told to join
        with _passing_on(context.processes):
            try:
                while not context.join(grace_period=GRACE_SECONDS):
                    pass
            except ProcessExitedException as error:
                return 128 - error.exit_code if error.exit_code < 0 else error.exit_code
            except ProcessRaisedException as error:
                raise TrainingError(f"process {error.error_index} of {size} failed\n{error}") from None
    return 0


def _take_seat(rank: int, function: Callable[[Seat], int], size: int, address: str) -> None:
    code = function(Seat(rank, size, rank, address))
    if code:
        sys.exit(code)


@contextmanager
def _passing_on(processes: Sequence[BaseProcess]) -> Iterator[None]:
    """Pass SIGTERM on to the processes; leave SIGINT to them, since a terminal sends it to the whole group."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.is_alive():
                process.terminate()

    former = signal.signal(signal.SIGTERM, pass_on), signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former[0])
        signal.signal(signal.SIGINT, former[1])
