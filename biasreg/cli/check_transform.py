"""`biasreg_check_transform`: explain a transform file in plain words, and test it."""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from biasreg.cli.arguments import make_parser
from biasreg.cli.run import EXIT_DONE, EXIT_FAILED, run_command

DESCRIPTION = (
    "Say what a transform file is, in which direction it goes and how far it takes points, and test it. Prints the "
    "explanation, then a line with PASS, WARN or FAIL for each test."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit code: 0 when no test fails, 1 when one does, 2 when a file cannot be read.
    """
    return run_command(partial(_check, _parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(DESCRIPTION)
    parser.add_argument("transform", type=Path, metavar="FILE", help="the transform, as biasreg_apply takes it")
    parser.add_argument("--reference", type=Path, metavar="IMAGE", help="fixed image: does the transform fit it?")
    parser.add_argument("--moving", type=Path, metavar="IMAGE", help="moving image: does the transform lead into it?")
    parser.add_argument("--json", action="store_true", help="print JSON instead")
    return parser


def _check(arguments: argparse.Namespace) -> int:
    from biasreg.core.serialization import to_json
    from biasreg.inference.check_transform import check_transform

    report = check_transform(arguments.transform, arguments.reference, arguments.moving)
    if arguments.json:
        print(json.dumps(to_json(report), indent=2, ensure_ascii=False))
    else:
        for line in (*report.explanation, *report.lines):
            print(line)
    return EXIT_FAILED if report.failed else EXIT_DONE
