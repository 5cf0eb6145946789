"""The command `biasreg_predict`."""

from collections.abc import Sequence
from pathlib import Path

from biasreg.cli.arguments import add_roots, make_parser, roots_from
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
        Exit code.
    """
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
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), help="default: the best there is")
    parser.add_argument("--save", nargs="+", default=[], choices=SAVE_CHOICES, help="further outputs")
    parser.add_argument("--continue_prediction", action="store_true", help="skip pairs whose record is already there")
    add_roots(parser)
    arguments = parser.parse_args(argv)

    def run() -> None:
        from biasreg.inference.models import ModelRequest, find_model
        from biasreg.inference.predict import PredictOptions, check_failures, predict_pairs
        from biasreg.network.device import select_device

        folds = tuple(arguments.folds) if arguments.folds else None
        request = ModelRequest(arguments.dataset, arguments.plans, arguments.configuration, folds)
        model = find_model(roots_from(arguments).results, request)
        options = PredictOptions(tuple(arguments.save), overwrite=not arguments.continue_prediction)
        device = select_device(arguments.device)
        check_failures(predict_pairs(arguments.input, arguments.output, model, device, options))

    return run_command(run)
