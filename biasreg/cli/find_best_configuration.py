"""The command `biasreg_find_best_configuration`."""

import argparse
from collections.abc import Sequence
from functools import partial

from biasreg.cli.arguments import add_roots, make_parser, roots_from
from biasreg.cli.run import run_command

DESCRIPTION = (
    "Compare the trained models of a dataset by the validation scores of their folds, say which one to use, and print "
    "the command that predicts with it."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit code.
    """
    parser = make_parser(DESCRIPTION)
    parser.add_argument("dataset", help="dataset id or name, for example 501")
    parser.add_argument("--ablations", action="store_true", help="recommend models without a part of the method too")
    add_roots(parser)
    return run_command(partial(_find, parser.parse_args(argv)))


def _find(arguments: argparse.Namespace) -> None:
    roots = roots_from(arguments)
    from biasreg.training.model_selection import find_best_configuration, format_models, predict_command

    choice, path = find_best_configuration(roots, arguments.dataset, ablations=arguments.ablations)
    print(format_models(choice))
    for notice in choice.notices:
        print(f"note: {notice}")
    print(f"\nbest: {choice.plans_name}__{choice.configuration_name}, written to {path}. Predict with it:")
    print(predict_command(choice, arguments.results))
