"""What the four commands before training share."""

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Literal

from biasreg.cli.arguments import add_roots, make_parser, roots_from
from biasreg.cli.run import run_command
from biasreg.core.parallel import GIB, total_memory_gib
from biasreg.core.paths import Roots, absolute_roots
from biasreg.planning.encoder_rules import ENCODERS

if TYPE_CHECKING:
    from biasreg.preprocessing.prepare import PrepareOptions


def run_preparation(
    description: str,
    step: "Callable[[Roots, str, PrepareOptions, Executor | None], object]",
    argv: Sequence[str] | None,
    *,
    plans: bool = False,
    cases: bool = False,
) -> int:
    """Run one of the steps before training as a command.

    Args:
        description: What the command does.
        step: The function of `preprocessing/prepare.py`, or one that imports and calls it.
        argv: Arguments; those of the process when None.
        plans: Whether the step makes plans, and so needs to know the device and what the user wants otherwise.
        cases: Whether the step preprocesses cases, of one configuration.

    Returns:
        Exit code.
    """
    arguments = _parser(description, plans=plans, cases=cases).parse_args(argv)

    def run() -> None:
        roots = roots_from(arguments)
        options = _options(arguments, plans=plans, cases=cases)
        if arguments.dask is None:
            step(roots, arguments.dataset, options, None)
            return
        from biasreg.core.cluster import open_cluster

        shared = absolute_roots(roots)  # workers have working folders of their own
        with open_cluster(arguments.dask, [shared.raw, shared.preprocessed]) as executor:
            step(shared, arguments.dataset, options, executor)

    return run_command(run)


def _parser(description: str, *, plans: bool, cases: bool) -> argparse.ArgumentParser:
    parser = make_parser(description)
    parser.add_argument("-d", "--dataset", required=True, help="dataset id or name, for example 501")
    parser.add_argument("-p", "--plans", default="biasregPlans", help="name of the plans")
    parser.add_argument(
        "-gpu_memory_target",
        type=_memory,
        metavar="GIB",
        help="plan for a GPU with this much memory; 0 plans for the CPU (default: the GPU found here, else the CPU)",
    )
    if plans:
        _add_planning(parser)
    if cases:
        parser.add_argument("-c", "--configuration", help="configuration to preprocess (default: the plans' default)")
    if plans and cases:
        parser.add_argument(
            "--pseudo_labels", action="store_true", help="first have TotalSegmentator make the labels that are missing"
        )
    parser.add_argument("-np", "--num_workers", type=_count, help="processes (default: as cores and memory allow)")
    parser.add_argument(
        "--dask", metavar="ADDRESS", help="work on the Dask cluster of this scheduler, or scheduler file"
    )
    parser.add_argument("--clean", action="store_true", help="make everything anew, even where results exist")
    parser.add_argument(
        "--verify_dataset_integrity",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="check all raw files first and report every fault",
    )
    add_roots(parser)
    return parser


def _options(arguments: argparse.Namespace, *, plans: bool, cases: bool) -> "PrepareOptions":
    from biasreg.preprocessing.prepare import PrepareOptions

    device, memory_gib = _planning_target(arguments.gpu_memory_target if plans else 0)
    return PrepareOptions(
        device=device,
        memory_gib=memory_gib,
        plans_name=arguments.plans,
        verify=arguments.verify_dataset_integrity,
        clean=arguments.clean,
        num_workers=arguments.num_workers,
        target_spacing=tuple(arguments.overwrite_target_spacing)
        if plans and arguments.overwrite_target_spacing
        else None,
        encoder=arguments.encoder if plans else "auto",
        changes=tuple(arguments.set) if plans else (),
        configuration=arguments.configuration if cases else None,
        pseudo_labels=plans and cases and arguments.pseudo_labels,
    )


def _add_planning(parser: argparse.ArgumentParser) -> None:
    """Add the flags by which a user wants plans otherwise than the rules give them."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="set a value of the plans, such as training.epochs=200; may be given several times",
    )
    parser.add_argument(
        "--encoder",
        choices=ENCODERS,
        default="auto",
        help="a pretrained encoder of VoCo, or one from scratch; auto takes VoCo-B on a GPU, where it is installed",
    )
    parser.add_argument(
        "-overwrite_target_spacing",
        type=float,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="voxel size in mm along x, y, z (default: as the rules give)",
    )


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
