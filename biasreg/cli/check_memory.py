"""The command `biasreg_check_memory`."""

import argparse
from collections.abc import Sequence
from functools import partial

from biasreg.cli.arguments import add_roots, make_parser, roots_from
from biasreg.cli.run import run_command

DESCRIPTION = "Compare the memory that plans expect of a training step with what a real one takes on this machine."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit code.
    """
    parser = make_parser(DESCRIPTION)
    parser.add_argument("-d", "--dataset", required=True, help="dataset id or name, for example 501")
    parser.add_argument("-p", "--plans", default="biasregPlans", help="name of the plans")
    parser.add_argument("-c", "--configuration", help="configuration (default: all of the plans)")
    parser.add_argument("-device", "--device", help="cuda, mps or cpu (default: the best there is)")
    add_roots(parser)
    return run_command(partial(_check, parser.parse_args(argv)))


def _check(arguments: argparse.Namespace) -> None:
    roots = roots_from(arguments)
    from biasreg.training.fit import check_memory

    for line in check_memory(roots, arguments.dataset, arguments.plans, arguments.configuration, arguments.device):
        print(line, flush=True)
