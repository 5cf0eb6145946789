"""The command `biasreg_export_model`."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from biasreg.cli.arguments import add_roots, make_parser, results_from
from biasreg.cli.run import run_command

DESCRIPTION = (
    "Pack a trained model into one file that can be given away: plans, weights as safetensors, and a model card, "
    "without the names of cases."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit code.
    """
    return run_command(partial(_export, _parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(DESCRIPTION)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the archive, *.zip; it must not exist yet")
    parser.add_argument("-d", "--dataset", help="dataset of the model (default: the only trained one)")
    parser.add_argument("-p", "--plans", help="name of the model's plans")
    parser.add_argument("--configuration", help="configuration of the model")
    parser.add_argument("-f", "--folds", nargs="+", help="folds to pack (default: all trained ones)")
    reference = parser.add_mutually_exclusive_group()
    reference.add_argument(
        "--include_reference",
        action="store_true",
        help="give away the image that cases are aligned to, which is A PATIENT'S IMAGE",
    )
    reference.add_argument(
        "--without_reference",
        action="store_true",
        help="leave that image out; without it the model cannot predict",
    )
    parser.add_argument(
        "--merge_lora",
        action="store_true",
        help="fold adapters into the pretrained weights, which are given away with them",
    )
    parser.add_argument("-e", "--evaluation", type=Path, help="summary.json of biasreg_evaluate, for the model card")
    parser.add_argument("--licence", default="", help="licence of the weights, as CC-BY-4.0")
    add_roots(parser)
    return parser


def _export(arguments: argparse.Namespace) -> None:
    results = results_from(arguments)
    from biasreg.inference.models import ModelRequest, find_model
    from biasreg.sharing.export_model import ExportOptions, export_model

    folds = tuple(arguments.folds) if arguments.folds else None
    request = ModelRequest(arguments.dataset, arguments.plans, arguments.configuration, folds)
    options = ExportOptions(
        include_reference=arguments.include_reference,
        without_reference=arguments.without_reference,
        merge_lora=arguments.merge_lora,
        evaluation=arguments.evaluation,
        licence=arguments.licence,
    )
    export_model(find_model(results, request), arguments.output, options)
    print(arguments.output)
