"""What the four commands before training share."""

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from biasreg.cli.arguments import add_roots, make_parser, roots_from
from biasreg.cli.run import run_command
from biasreg.core.parallel import total_memory_gib
from biasreg.core.paths import Roots

if TYPE_CHECKING:
    from biasreg.preprocessing.prepare import PrepareOptions

GIB = 2.0**30


def run_preparation(
    description: str, step: "Callable[[Roots, str, PrepareOptions], object]", argv: Sequence[str] | None
) -> int:
    """Run one of the steps before training as a command.

    Args:
        description: What the command does.
        step: The function of `preprocessing/prepare.py`, or one that imports and calls it.
        argv: Arguments; those of the process when None.

    Returns:
        Exit code.
    """
    parser = make_parser(description)
    parser.add_argument("-d", "--dataset", required=True, help="dataset id or name, for example 501")
    parser.add_argument("-p", "--plans", default="biasregPlans", help="name of the plans")
    parser.add_argument(
        "-gpu_memory_target",
        type=float,
        metavar="GIB",
        help="plan for a GPU with this much memory; 0 plans for the CPU (default: the GPU found here, else the CPU)",
    )
    parser.add_argument("-np", "--num_workers", type=int, help="processes (default: as cores and memory allow)")
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
        step(roots_from(arguments), arguments.dataset, _options(arguments))

    return run_command(run)


def _options(arguments: argparse.Namespace) -> "PrepareOptions":
    from biasreg.preprocessing.prepare import PrepareOptions

    device, memory_gib = _planning_target(arguments.gpu_memory_target)
    return PrepareOptions(
        device=device,
        memory_gib=memory_gib,
        plans_name=arguments.plans,
        verify=arguments.verify_dataset_integrity,
        clean=arguments.clean,
        num_workers=arguments.num_workers,
    )


def _planning_target(gpu_memory_target: float | None) -> tuple[Literal["cpu", "cuda"], float]:
    """Find the device that plans are made for, and its memory in GiB."""
    if gpu_memory_target is None:
        import torch

        if torch.cuda.is_available():
            return "cuda", round(torch.cuda.get_device_properties(0).total_memory / GIB, 1)
    elif gpu_memory_target > 0:
        return "cuda", gpu_memory_target
    return "cpu", round(total_memory_gib(), 1)
