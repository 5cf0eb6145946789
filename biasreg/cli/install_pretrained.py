"""The command `biasreg_install_pretrained`."""

import argparse
from collections.abc import Sequence
from functools import partial

from biasreg.cli.arguments import add_roots, make_parser, results_from
from biasreg.cli.run import run_command

DESCRIPTION = "Install VoCo's pretrained weights, so that new plans start the encoder from them."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit code.
    """
    parser = make_parser(DESCRIPTION)
    parser.add_argument(
        "source",
        metavar="FILE|URL|NAME",
        help="a file, an address, or voco_b, voco_l or voco_h for the file that VoCo's authors publish",
    )
    parser.add_argument("--sha256", metavar="HASH", help="SHA-256 that the file must have (default: any)")
    add_roots(parser)
    return run_command(partial(_install, parser.parse_args(argv)))


def _install(arguments: argparse.Namespace) -> None:
    results = results_from(arguments)
    from biasreg.network.install_pretrained import install_pretrained

    print(install_pretrained(arguments.source, results, arguments.sha256))
