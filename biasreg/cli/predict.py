"""The command `biasreg_predict`."""

import argparse
import os
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

from biasreg.cli.arguments import add_roots, make_parser, results_from
from biasreg.cli.run import run_command
from biasreg.core.errors import InputError

DESCRIPTION = (
    "Register pairs of images with a trained model. Writes per pair the displacement field (_warp.nii.gz, ITK's "
    "convention, on the fixed image's grid), its inverse, the warped image and labels, and a record."
)
SAVE_CHOICES = ("jacobian", "folding", "inverse_error", "uncertainty", "h5", "learn2reg", "levels", "features")
AXES = "xyz"  # of the canonical frame: left-right, posterior-anterior, inferior-superior
LONGEST_WAIT = timedelta(days=7)  # of a process that is done for the others


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit code: 0 when every pair is registered, 1 when some failed (with --strict, or got the verdict FAIL), 2 when
        the input cannot be used.
    """
    return run_command(partial(_predict, _parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(DESCRIPTION)
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        required=True,
        help="folder with <pair>_moving and <pair>_fixed images, a pairs.json or pairs.csv, or a raw dataset folder "
        "whose test pairs are registered",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="output folder")
    parser.add_argument("-d", "--dataset", help="dataset of the model (default: the only trained one)")
    parser.add_argument("-p", "--plans", help="name of the model's plans")
    parser.add_argument("--configuration", help="configuration of the model")
    parser.add_argument("-f", "--folds", nargs="+", help="folds to use (default: all trained ones, averaged)")
    parser.add_argument("-device", "--device", help="cuda, mps or cpu (default: the best there is)")
    parser.add_argument(
        "--tta",
        nargs="?",
        const=AXES,
        default="",
        type=_axes,
        metavar="AXES",
        help="average over the pair mirrored along these axes too, in all combinations (alone: xyz); measure it first, "
        "for networks are not trained on mirrored images",
    )
    parser.add_argument(
        "--refine",
        type=int,
        metavar="N",
        help="refine each field on its own pair by at most so many steps on each grid, without labels; 0 for none "
        "(default: 30 where the images show more than the model's grid can, else none)",
    )
    parser.add_argument(
        "--save",
        nargs="+",
        action="extend",
        default=[],
        type=_words,
        metavar="OUTPUT",
        help=f"further outputs: {', '.join(SAVE_CHOICES)}",
    )
    parser.add_argument("--uncompressed", action="store_true", help="write images as .nii; fields stay .nii.gz")
    parser.add_argument(
        "--continue_prediction",
        action="store_true",
        help="keep the pairs that this model has registered from the same files already",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="make the exit code 1 also when the verdict on a pair is FAIL; its files are written all the same",
    )
    parser.add_argument("--num_parts", type=int, default=1, help="parts that the batch is divided into")
    parser.add_argument("--part_id", type=int, default=0, help="which of these parts this process does, from 0")
    cores = os.cpu_count() or 1
    workers = max(1, min(3, cores // 4))
    parser.add_argument("-npp", type=int, default=workers, help="threads that read and prepare pairs")
    parser.add_argument("-nps", type=int, default=workers, help="threads that finish and write pairs")
    add_roots(parser)
    return parser


def _axes(text: str) -> str:
    if len(set(text)) < len(text) or not set(text) <= set(AXES):
        raise argparse.ArgumentTypeError(f"'{text}' are no axes; give some of x, y and z, such as xy")
    return text


def _words(text: str) -> list[str]:
    words = [word for word in text.split(",") if word]
    unknown = [word for word in words if word not in SAVE_CHOICES]
    if unknown or not words:
        raise argparse.ArgumentTypeError(
            f"there is no output {', '.join(unknown) or repr(text)}; choose from {', '.join(SAVE_CHOICES)}"
        )
    return words


def _predict(arguments: argparse.Namespace) -> None:
    part = _part(arguments)
    if (arguments.refine or 0) < 0 or min(arguments.npp, arguments.nps) < 1:
        raise InputError("--refine takes no negative number, -npp and -nps take at least 1 · correct the option")
    from biasreg.inference.models import ModelRequest, find_model
    from biasreg.inference.predict import PredictOptions, check_failures, predict_pairs
    from biasreg.network.device import select_device

    folds = tuple(arguments.folds) if arguments.folds else None
    request = ModelRequest(arguments.dataset, arguments.plans, arguments.configuration, folds)
    model = find_model(results_from(arguments), request)
    options = PredictOptions(
        save=tuple(dict.fromkeys(word for words in arguments.save for word in words)),
        overwrite=not arguments.continue_prediction,
        mirror_axes=tuple(sorted(AXES.index(axis) for axis in arguments.tta)),
        refine_steps=arguments.refine,
        compressed=not arguments.uncompressed,
        part=part,
        workers=(arguments.npp, arguments.nps),
        strict=arguments.strict,
    )
    device = select_device(arguments.device)
    if str(device) == "cuda" and "LOCAL_RANK" in os.environ:  # of those that torchrun starts, each takes its own
        device = select_device(f"cuda:{os.environ['LOCAL_RANK']}")
    failures = predict_pairs(arguments.input, arguments.output, model, device, options)
    check_failures(_of_all_processes(failures) if "TORCHELASTIC_RUN_ID" in os.environ else failures)


def _of_all_processes(failures: dict[str, str]) -> dict[str, str]:
    """Wait for the other processes of torchrun, which ends all as soon as one ends with an error."""
    from torch import distributed

    distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
    gathered: list[dict[str, str]] = [{}] * distributed.get_world_size()
    distributed.all_gather_object(gathered, failures)
    distributed.destroy_process_group()
    return {name: reason for part in gathered for name, reason in part.items()}


def _part(arguments: argparse.Namespace) -> tuple[int, int]:
    """Find which part of the batch this process does: by its flags, or by its number among torchrun's processes."""
    part, parts = arguments.part_id, arguments.num_parts
    if "TORCHELASTIC_RUN_ID" in os.environ:
        if parts != 1:
            raise InputError("--num_parts divides the batch, and so does torchrun · use one of them")
        part, parts = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if not 0 <= part < parts:
        raise InputError(f"there is no part {part} of {parts} · --part_id counts from 0 to --num_parts less 1")
    return part, parts
