"""The command `biasreg_export_predictions`."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from biasreg.cli.arguments import make_parser
from biasreg.cli.run import run_command

DESCRIPTION = (
    "Give the fields of biasreg_predict the form and names that others ask for: a submission to the Learn2Reg "
    "challenge, or derivatives of a BIDS dataset."
)
FORMATS = ("learn2reg", "bids")
OF_FORMAT = {"learn2reg": ("precision", "long_names", "zip"), "bids": ("suffix", "copy")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit code: 0 when every pair is written, 1 when some could not be, 2 when the input cannot be used.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    other = next(name for name in FORMATS if name != arguments.format)
    for option in OF_FORMAT[other]:
        if getattr(arguments, option) != parser.get_default(option):
            parser.error(f"--{option} belongs to --format {other}")
    return run_command(partial(_export, arguments))


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(DESCRIPTION)
    parser.add_argument("-i", "--input", type=Path, required=True, help="output folder of biasreg_predict")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to; empty or not there yet")
    parser.add_argument("--format", choices=FORMATS, required=True, help="whose form and names")
    group = parser.add_argument_group("learn2reg")
    group.add_argument(
        "--precision", choices=("float32", "float16"), default="float32", help="round the numbers to this precision"
    )
    group.add_argument(
        "--long_names", action="store_true", help="disp_<fixed>_<kind>_<moving>_<kind>, where short names would do"
    )
    group.add_argument("--zip", action="store_true", help="write submission.zip too")
    group = parser.add_argument_group("bids")
    group.add_argument("--suffix", help="kind of the images, as T1w, where their names do not say it")
    group.add_argument("--copy", action="store_true", help="copy the files, where hard links would do")
    return parser


def _export(arguments: argparse.Namespace) -> None:
    from biasreg.sharing.bids_derivatives import write_bids
    from biasreg.sharing.learn2reg_submission import SubmissionOptions, write_submission
    from biasreg.sharing.predictions import check_written

    if arguments.format == "learn2reg":
        options = SubmissionOptions(arguments.precision, arguments.long_names, arguments.zip)
        failures = write_submission(arguments.input, arguments.output, options)
    else:
        failures = write_bids(arguments.input, arguments.output, suffix=arguments.suffix, copy=arguments.copy)
    check_written(failures)
    print(arguments.output)
