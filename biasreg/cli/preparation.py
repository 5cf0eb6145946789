"""What the four commands before training share."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from biasreg.cli.arguments import add_roots, make_parser, roots_from
from biasreg.cli.run import run_command
from biasreg.core.errors import InputError
from biasreg.core.parallel import GIB, total_memory_gib
from biasreg.core.paths import Roots

if TYPE_CHECKING:
    from biasreg.preprocessing.prepare import PrepareOptions


def run_preparation(
    description: str,
    step: "Callable[[Roots, str, PrepareOptions, Executor | None], object]",
    argv: Sequence[str] | None,
    *,
    plans: bool,
) -> int:
    """Run one of the steps before training as a command.

    Args:
        description: What the command does.
        step: The function of `preprocessing/prepare.py`, or one that imports and calls it.
        argv: Arguments; those of the process when None.
        plans: Whether the step makes plans, and so needs to know the device.

    Returns:
        Exit code.
    """
    parser = make_parser(description)
    parser.add_argument("-d", "--dataset", required=True, help="dataset id or name, for example 501")
    parser.add_argument("-p", "--plans", default="biasregPlans", help="name of the plans")
    parser.add_argument(
        "-gpu_memory_target",
        type=_memory,
        metavar="GIB",
        help="plan for a GPU with this much memory; 0 plans for the CPU (default: the GPU found here, else the CPU)",
    )
    parser.add_argument("-np", "--num_workers", type=_count, help="processes (default: as cores and memory allow)")
    parser.add_argument("--dask", metavar="ADDRESS", help="work on this scheduler's Dask cluster (extra 'cluster')")
    parser.add_argument("--clean", action="store_true", help="make everything anew, even where results exist")
    parser.add_argument(
        "--verify_dataset_integrity",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="check all raw files first and report every fault",
    )
    add_roots(parser)
    arguments = parser.parse_args(argv)

    def run() -> None:
        roots = roots_from(arguments)
        options = _options(arguments, plans=plans)
        with _dask_executor(arguments.dask) as executor:
            step(roots, arguments.dataset, options, executor)

    return run_command(run)


def _options(arguments: argparse.Namespace, *, plans: bool) -> "PrepareOptions":
    from biasreg.preprocessing.prepare import PrepareOptions

    device, memory_gib = _planning_target(arguments.gpu_memory_target if plans else 0)
    return PrepareOptions(
        device=device,
        memory_gib=memory_gib,
        plans_name=arguments.plans,
        verify=arguments.verify_dataset_integrity,
        clean=arguments.clean,
        num_workers=arguments.num_workers,
    )


@contextmanager
def _dask_executor(address: str | None) -> Iterator[Executor | None]:
    """Connect to a Dask cluster; None without an address, for processes of this machine."""
    if address is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError(f"--dask needs the package distributed ({error}) · pip install 'biasreg[cluster]'") from error
    try:
        client = Client(address)
    except (OSError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at '{address}': {error} · give another address") from error
    with client:
        yield client.get_executor()


def _memory(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected GiB from 0, got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text}")
    return value


def _planning_target(gpu_memory_target: float | None) -> tuple[Literal["cpu", "cuda"], float]:
    """Find the device that plans are made for, and its memory in GiB."""
    if gpu_memory_target is None:
        import torch

        if torch.cuda.is_available():
            return "cuda", round(torch.cuda.get_device_properties(0).total_memory / GIB, 1)
    elif gpu_memory_target > 0:
        return "cuda", gpu_memory_target
    return "cpu", round(total_memory_gib(), 1)
