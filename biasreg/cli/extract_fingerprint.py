"""The command `biasreg_extract_fingerprint`."""

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from biasreg.cli.preparation import run_preparation
from biasreg.core.paths import Roots

if TYPE_CHECKING:
    from biasreg.preprocessing.prepare import PrepareOptions

DESCRIPTION = "Verify a raw dataset and state the facts about it in dataset_fingerprint.json."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit code.
    """
    return run_preparation(DESCRIPTION, _step, argv)


def _step(roots: Roots, dataset: str, options: "PrepareOptions", executor: Executor | None) -> None:
    from biasreg.preprocessing.prepare import extract_fingerprint

    extract_fingerprint(roots, dataset, options, executor)
