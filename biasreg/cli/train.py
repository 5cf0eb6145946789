"""The command `biasreg_train`."""

import argparse
import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from biasreg.cli.arguments import add_roots, make_parser, roots_from
from biasreg.cli.run import EXIT_DONE, EXIT_UNUSABLE, run_command
from biasreg.core.errors import InputError

if TYPE_CHECKING:
    from biasreg.training.distributed import Seat
    from biasreg.training.options import TrainingOptions

DESCRIPTION = "Train one fold of a dataset, as its plans say."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit code; 130 or 143 when SIGINT or SIGTERM stopped training, which `--c` then resumes.
    """
    arguments = _parser().parse_args(argv)
    if arguments.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA asks for it, before it starts
    if arguments.check:
        return run_command(partial(_check, arguments))
    if arguments.num_gpus is not None:
        return run_command(partial(_train_in_processes, arguments))
    is_first = os.environ.get("RANK", "0") == "0"  # of those that torchrun starts
    return run_command(partial(_train, arguments), quiet=not is_first)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(DESCRIPTION)
    parser.add_argument("dataset", help="dataset id or name, for example 501")
    parser.add_argument("fold", type=_fold, help="number of the fold, or 'all' to train on every case")
    parser.add_argument("-cfg", "--configuration", help="configuration (default: the plans' default)")
    parser.add_argument("-p", "--plans", default="biasregPlans", help="name of the plans")
    parser.add_argument("--c", dest="resume", action="store_true", help="continue from the latest checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="throw away an earlier run of this fold")
    parser.add_argument("-device", "--device", help="cuda, mps or cpu (default: the best there is)")
    parser.add_argument("--epochs", type=int, help="number of epochs (default: as planned)")
    parser.add_argument("--iterations_per_epoch", type=int, help="steps per epoch (default: as planned)")
    parser.add_argument("--seed", type=int, help="seed of everything random (default: 12345)")
    parser.add_argument("--num_workers", type=int, help="processes that load data (default: half of the cores)")
    parser.add_argument("--validate_every", type=int, default=1, help="validate after every so many epochs")
    parser.add_argument("--check", action="store_true", help="check data and learning in a minute, and end")
    parser.add_argument("--picture_every", type=int, default=10, help="draw a validation pair every so many epochs")
    parser.add_argument(
        "--track",
        nargs="+",
        choices=("tensorboard", "wandb", "mlflow"),
        default=(),
        help="programs that follow the run too, where they are installed",
    )
    parser.add_argument(
        "--ablate",
        type=lambda text: tuple(part.strip() for part in text.split(",") if part.strip()),
        action="extend",
        default=[],
        metavar="PART,...",
        help="parts of the method to go without; the model gets a folder of its own",
    )
    parser.add_argument("--deterministic", action="store_true", help="the same numbers each time, where torch can")
    parser.add_argument(
        "-num_gpus", "--num_gpus", type=_count, help="train on so many GPUs of this computer, each with a batch"
    )
    add_roots(parser)
    return parser


def _fold(text: str) -> int | Literal["all"]:
    if text == "all":
        return "all"
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is neither the number of a fold nor 'all'")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of at least 1")
    return int(text)


def _train_in_processes(arguments: argparse.Namespace) -> int:
    from biasreg.network.device import select_device
    from biasreg.training.distributed import require_gpus
    from biasreg.training.launch import launch
    from biasreg.training.workspace import open_workspace

    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise InputError("-num_gpus starts processes, and so does torchrun · use one of them")
    options = _options(arguments)  # what is wrong with them, or missing, is reported once
    open_workspace(roots_from(arguments), arguments.dataset, options.plans_name, options.configuration, options.ablate)
    if select_device(arguments.device).type == "cuda":
        require_gpus(arguments.num_gpus)
    return launch(partial(_train_at, arguments), arguments.num_gpus)


def _train_at(arguments: argparse.Namespace, seat: "Seat") -> int:
    return run_command(partial(_train, arguments, seat), quiet=seat.rank > 0)


def _train(arguments: argparse.Namespace, seat: "Seat | None" = None) -> None:
    roots = roots_from(arguments)
    from biasreg.training.distributed import seat_from
    from biasreg.training.fold import train_fold

    train_fold(roots, arguments.dataset, arguments.fold, _options(arguments), seat or seat_from(os.environ))


def _check(arguments: argparse.Namespace) -> int:
    roots = roots_from(arguments)
    from biasreg.training.fold import check_fold

    lines = []
    for line in check_fold(roots, arguments.dataset, arguments.fold, _options(arguments)):
        print(line, flush=True)
        lines.append(line)
    return EXIT_UNUSABLE if any(line.verdict == "FAIL" for line in lines) else EXIT_DONE


def _options(arguments: argparse.Namespace) -> "TrainingOptions":
    from biasreg.training.options import TrainingOptions

    return TrainingOptions(
        configuration=arguments.configuration,
        plans_name=arguments.plans,
        device=arguments.device,
        epochs=arguments.epochs,
        iterations_per_epoch=arguments.iterations_per_epoch,
        seed=arguments.seed,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        num_workers=arguments.num_workers,
        validate_every=arguments.validate_every,
        picture_every=arguments.picture_every,
        track=tuple(arguments.track),
        ablate=tuple(arguments.ablate),
        deterministic=arguments.deterministic,
    )
