"""The command `biasreg_predict`."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from biasreg.cli.arguments import add_roots, make_parser, results_from
from biasreg.cli.run import run_command

DESCRIPTION = (
    "Register pairs of images with a trained model. Writes per pair the displacement field (_warp.nii.gz, ITK's "
    "convention, on the fixed image's grid), its inverse, the warped image and labels, and a record."
)
SAVE_CHOICES = ("jacobian", "h5", "learn2reg")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit code: 0 when every pair is registered, 1 when some failed, 2 when the input cannot be used.
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
    parser.add_argument("--save", nargs="+", default=[], choices=SAVE_CHOICES, help="further outputs")
    parser.add_argument(
        "--continue_prediction",
        action="store_true",
        help="keep the pairs that this model has registered from the same files already",
    )
    add_roots(parser)
    return parser


def _predict(arguments: argparse.Namespace) -> None:
    from biasreg.inference.models import ModelRequest, find_model
    from biasreg.inference.predict import PredictOptions, check_failures, predict_pairs
    from biasreg.network.device import select_device

    folds = tuple(arguments.folds) if arguments.folds else None
    request = ModelRequest(arguments.dataset, arguments.plans, arguments.configuration, folds)
    model = find_model(results_from(arguments), request)
    options = PredictOptions(tuple(arguments.save), overwrite=not arguments.continue_prediction)
    device = select_device(arguments.device)
    check_failures(predict_pairs(arguments.input, arguments.output, model, device, options))
