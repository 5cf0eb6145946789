"""Arguments that several commands share."""

import argparse
import os
from pathlib import Path
from typing import Any

from biasreg.core.paths import Roots, resolve_results, resolve_roots


class _ExactParser(argparse.ArgumentParser):
    """Takes no abbreviated options: argparse's own switch leaves those with a single dash, so that -c would be -cfg."""

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        found: list[Any] = super()._get_option_tuples(option_string)
        return [each for each in found if option_string.startswith(each[1])]


def make_parser(description: str) -> argparse.ArgumentParser:
    """Make a parser that shows defaults and takes no abbreviated options.

    Args:
        description: What the command does, in a sentence or two.

    Returns:
        The parser.
    """
    return _ExactParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )


def add_roots(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the three root folders.

    Args:
        parser: The parser.
    """
    group = parser.add_argument_group("folders (default: environment variables, then ./biasreg_data)")
    group.add_argument("--raw", type=Path, help="raw datasets (biasreg_raw)")
    group.add_argument("--preprocessed", type=Path, help="preprocessed datasets (biasreg_preprocessed)")
    group.add_argument("--results", type=Path, help="trained models (biasreg_results)")


def roots_from(arguments: argparse.Namespace) -> Roots:
    """Find the root folders from flags, environment and working folder.

    Args:
        arguments: Parsed arguments of a parser with `add_roots`.

    Returns:
        The roots.
    """
    return resolve_roots(os.environ, raw=arguments.raw, preprocessed=arguments.preprocessed, results=arguments.results)


def results_from(arguments: argparse.Namespace) -> Path:
    """Find the root of the results alone from flags, environment and working folder.

    Args:
        arguments: Parsed arguments of a parser with `add_roots`.

    Returns:
        The root.
    """
    return resolve_results(os.environ, results=arguments.results)
