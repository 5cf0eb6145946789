"""`biasreg_evaluate`: measure displacement fields against reference labels and landmarks."""

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from biasreg.cli.arguments import add_roots, roots_from
from biasreg.cli.run import run_command

if TYPE_CHECKING:
    from concurrent.futures import Executor

DESCRIPTION = """\
Measure displacement fields <pair>_warp.nii.gz, made by biasreg or by any other tool, on pairs with reference labels or
landmarks: Dice, 95th percentile Hausdorff distance, landmark error, folding and log-Jacobian spread. The moving labels
are warped at native resolution; no registration at all ("identity") is always measured beside.
"""

OUTPUTS = """\
outputs (in OUTPUT, by default the folder of predictions):
  summary.json   everything: per method, pair and label; comparisons, thirds of the pairs, worst pairs
  scores.csv     one row per pair, method and label
  summary.txt    the tables that are also printed

A pair whose field is missing or cannot be used is named at the end and makes the exit code 1; the others are measured.
Where no field can be measured, nothing is written. An earlier evaluation in OUTPUT is replaced only by one on the same
references of the same folders of predictions, or of these and more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit code.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    names = [name for name, _ in _methods(arguments)]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if not names:
        parser.error("give a folder of predictions: -i PREDICTIONS, or --method NAME=FOLDER")
    if doubled:
        parser.error(f"a method named {', '.join(doubled)} is given twice; give each its own name")
    if arguments.reference_method not in (None, *names):
        parser.error(
            f"--reference_method: there is no method {arguments.reference_method}; choose of {', '.join(names)}"
        )
    if arguments.references is None and arguments.dataset is None:
        parser.error("give the reference pairs: -r REFERENCES, or -d DATASET to take its test pairs")
    return run_command(partial(_evaluate, arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="biasreg_evaluate",
        description=DESCRIPTION,
        epilog=OUTPUTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-i", "--input", type=Path, metavar="PREDICTIONS", help="folder of <pair>_warp.nii.gz")
    parser.add_argument(
        "-r",
        "--references",
        type=Path,
        help="reference pairs: a folder or list as biasreg_predict takes it, with *_seg or *_points files, or a raw "
        "dataset folder, whose test pairs are taken (default: the dataset of -d)",
    )
    parser.add_argument("-o", "--output", type=Path, help="output folder (default: the folder of predictions)")
    parser.add_argument(
        "-d",
        "--dataset",
        help="dataset whose label names are used, id or name (default: REFERENCES if that is a raw dataset folder; "
        "otherwise labels go by their values)",
    )
    parser.add_argument(
        "--method",
        action="append",
        default=[],
        type=_named_folder,
        metavar="NAME=FOLDER",
        help="a further folder of predictions, shown as NAME; may be repeated (that of -i is shown as biasreg)",
    )
    parser.add_argument(
        "--reference_method",
        metavar="NAME",
        help="the method that the others are compared with, pair by pair (default: biasreg, or else the first one)",
    )
    parser.add_argument("-np", "--num_workers", type=_positive, default=1, help="pairs evaluated at once (default: 1)")
    add_roots(parser)
    return parser


def _named_folder(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not (name and separator and folder):
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER, got {text!r}")
    return name, Path(folder)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _evaluate(arguments: argparse.Namespace) -> int:
    from biasreg.core.errors import PredictionError
    from biasreg.evaluation.evaluate import evaluate_predictions
    from biasreg.evaluation.tables import format_table

    references, labels = _references_and_labels(arguments)
    methods = dict(_methods(arguments))
    output = arguments.output or next(iter(methods.values()))
    with _executor(arguments.num_workers) as executor:
        evaluation = evaluate_predictions(methods, references, labels, output, executor, arguments.reference_method)
    print(format_table(evaluation), end="")
    if evaluation.failures:
        pairs = sorted({failure.pair for failure in evaluation.failures})
        raise PredictionError(f"{len(pairs)} pair(s) could not be evaluated: {', '.join(pairs)}; reasons are above")
    return 0


def _methods(arguments: argparse.Namespace) -> list[tuple[str, Path]]:
    """Name and folder of every method, in the order of the table."""
    given = [("biasreg", arguments.input)] if arguments.input is not None else []
    return given + list(arguments.method)


def _references_and_labels(arguments: argparse.Namespace) -> tuple[Path, dict[str, int] | None]:
    """Find the reference pairs, and the label names of the dataset they belong to, if any."""
    from biasreg.core.dataset import read_dataset
    from biasreg.core.paths import find_dataset

    references: Path | None = arguments.references
    if arguments.dataset is not None:
        folder = find_dataset(arguments.dataset, roots_from(arguments).raw)
    elif references is not None and (references / "dataset.json").is_file():
        folder = references
    else:
        assert references is not None  # main has checked
        return references, None
    return references or folder, read_dataset(folder).json.labels


def _executor(num_workers: int) -> "AbstractContextManager[Executor | None]":
    """A pool of processes, or none where one is enough: this one."""
    if num_workers == 1:
        return nullcontext()
    from biasreg.core.parallel import process_executor

    return process_executor(num_workers)
