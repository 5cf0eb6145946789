"""The command `biasreg_pseudo_label`."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from biasreg.cli.arguments import add_roots, make_parser, roots_from
from biasreg.cli.run import run_command

DESCRIPTION = "Make the labels that training cases lack, by TotalSegmentator or from label maps of another program."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit code.
    """
    return run_command(partial(_make, _parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(DESCRIPTION)
    parser.add_argument("-d", "--dataset", required=True, help="dataset id or name, for example 501")
    parser.add_argument("--task", help="task of TotalSegmentator (default: total for CT, total_mr for MR)")
    parser.add_argument("--fast", action="store_true", help="take the model of lower resolution (3 mm)")
    parser.add_argument("-device", "--device", help="gpu, gpu:1, mps or cpu (default: a GPU if there is one)")
    parser.add_argument(
        "--roi_subset",
        nargs="+",
        default=[],
        metavar="CLASS",
        help="only these classes (default: all that make a label)",
    )
    parser.add_argument(
        "--label_map", type=Path, metavar="FILE", help='JSON {"label": "class" or ["class", …]}, where names differ'
    )
    parser.add_argument(
        "--from", dest="folder", type=Path, metavar="FOLDER", help="take label maps of another program from this folder"
    )
    parser.add_argument("--download", action="store_true", help="download weights of TotalSegmentator that are missing")
    parser.add_argument("--clean", action="store_true", help="make all anew, even those corrected by hand since")
    add_roots(parser)
    return parser


def _make(arguments: argparse.Namespace) -> None:
    roots = roots_from(arguments)
    from biasreg.core.errors import InputError
    from biasreg.preprocessing.pseudo_labels import PseudoLabelOptions, make_pseudo_labels
    from biasreg.preprocessing.segmenter_choice import SegmenterOptions

    if arguments.folder and (arguments.task or arguments.fast or arguments.device or arguments.download):
        raise InputError("--from takes label maps as they are · leave --task, --fast, -device and --download out")
    segmenter = SegmenterOptions(
        task=arguments.task,
        fast=arguments.fast,
        device=arguments.device,
        download=arguments.download,
        roi_subset=tuple(arguments.roi_subset),
        label_map=arguments.label_map,
        folder=arguments.folder,
    )
    make_pseudo_labels(roots, arguments.dataset, PseudoLabelOptions(segmenter, clean=arguments.clean))
