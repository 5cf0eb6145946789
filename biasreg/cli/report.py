"""The command `biasreg_report`."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from biasreg.cli.arguments import add_roots, make_parser, roots_from
from biasreg.cli.run import run_command

DESCRIPTION = (
    "Make one self-contained HTML file about a trained model, its predictions and their evaluation: results, curves, "
    "plans with their reasons, and a viewer of pairs. It is opened from disk and loads nothing."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit code.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.dataset is None and arguments.input is None and arguments.evaluation is None:
        parser.error("give a dataset (-d), a folder of predictions (-i) or an evaluation (-e)")
    return run_command(partial(_report, arguments))


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(DESCRIPTION)
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the HTML file")
    parser.add_argument("-i", "--input", type=Path, metavar="PREDICTIONS", help="folder of predictions")
    parser.add_argument("-d", "--dataset", help="dataset of the model: adds plans, training curves and facts")
    parser.add_argument("-p", "--plans", help="name of the model's plans")
    parser.add_argument("--configuration", help="configuration of the model")
    parser.add_argument("-f", "--folds", nargs="+", help="folds to show (default: all trained ones)")
    parser.add_argument(
        "-e", "--evaluation", type=Path, help="folder of an evaluation (default: the folder of predictions)"
    )
    parser.add_argument(
        "-r",
        "--references",
        type=Path,
        help="where the images and labels of the pairs are, as biasreg_predict takes them (default: where the records "
        "of the pairs, the dataset or the evaluation say)",
    )
    parser.add_argument("--pairs", type=_count, default=6, metavar="N", help="at most so many pairs to look at")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="save the figures there too, as SVG and PNG")
    add_roots(parser)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}")
    return int(text)


def _report(arguments: argparse.Namespace) -> None:
    from biasreg.inference.models import ModelRequest
    from biasreg.report.make_report import ReportOptions, make_report
    from biasreg.report.material import ReportRequest

    folds = tuple(arguments.folds) if arguments.folds else None
    request = ReportRequest(
        model=ModelRequest(arguments.dataset, arguments.plans, arguments.configuration, folds),
        roots=None if arguments.dataset is None else roots_from(arguments),
        predictions=arguments.input,
        evaluation=arguments.evaluation,
        references=arguments.references,
    )
    print(make_report(request, arguments.output, ReportOptions(arguments.pairs, arguments.figures)))
