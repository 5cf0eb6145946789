"""The command `biasreg_install_model`."""

import argparse
from collections.abc import Sequence
from functools import partial

from biasreg.cli.arguments import add_roots, make_parser, results_from
from biasreg.cli.run import run_command

DESCRIPTION = "Install a model that biasreg_export_model packed, so that biasreg_predict finds it. Nothing is executed."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit code.
    """
    parser = make_parser(DESCRIPTION)
    parser.add_argument("source", metavar="FILE|URL", help="the archive: a file, or an https address")
    parser.add_argument("--force", action="store_true", help="replace a model of the same name")
    add_roots(parser)
    return run_command(partial(_install, parser.parse_args(argv)))


def _install(arguments: argparse.Namespace) -> None:
    results = results_from(arguments)
    from biasreg.sharing.install_model import install_model

    print(install_model(arguments.source, results, force=arguments.force))
