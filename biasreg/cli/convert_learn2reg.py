"""The command `biasreg_convert_learn2reg`."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from biasreg.cli.arguments import add_roots, make_parser, roots_from
from biasreg.cli.run import run_command

DESCRIPTION = (
    "Make a raw dataset of a dataset of the Learn2Reg challenge, which is not changed: images, label maps and masks "
    "are linked, points in voxels become points in mm, pairs and modalities are taken over. What cannot be is reported."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit code.
    """
    parser = make_parser(DESCRIPTION)
    parser.add_argument("-i", "--input", type=Path, required=True, help="folder with <Name>_dataset.json and imagesTr")
    parser.add_argument("-d", "--dataset", type=int, required=True, metavar="NUMBER", help="number of the new dataset")
    parser.add_argument("--name", help="name of the new dataset (default: its own)")
    parser.add_argument(
        "--test_pairs",
        choices=("val", "test"),
        default="val",
        help="the list that becomes test_pairs: registration_val or registration_test",
    )
    parser.add_argument("--copy", action="store_true", help="copy the files, where hard links would do")
    add_roots(parser)
    return run_command(partial(_convert, parser.parse_args(argv)))


def _convert(arguments: argparse.Namespace) -> None:
    raw = roots_from(arguments).raw
    from biasreg.sharing.convert_learn2reg import ConvertOptions, convert_learn2reg

    options = ConvertOptions(arguments.name, arguments.test_pairs, arguments.copy)
    print(convert_learn2reg(arguments.input, raw, arguments.dataset, options))
