"""What a self-check answers: one line for each question."""

import logging
from collections.abc import Iterable, Mapping

from biasreg.core.check_lines import CheckLine, Verdict, listed
from biasreg.core.errors import InputError

logger = logging.getLogger(__name__)

__all__ = ["CheckLine", "Verdict", "listed", "log_lines", "refuse_failures"]


def log_lines(lines: Iterable[CheckLine]) -> None:
    """Log every line, at the level of its verdict.

    Args:
        lines: The lines.
    """
    levels: Mapping[Verdict, int] = {"PASS": logging.INFO, "WARN": logging.WARNING, "FAIL": logging.ERROR}
    for line in lines:
        logger.log(levels[line.verdict], "self-check: %s", line)


def refuse_failures(lines: Iterable[CheckLine]) -> None:
    """Stop if a check failed.

    Args:
        lines: The lines.

    Raises:
        InputError: If any of them is a FAIL; the message lists these.
    """
    failed = "".join(f"\n  {line}" for line in lines if line.verdict == "FAIL")
    if failed:
        raise InputError(f"the self-check before training failed:{failed}")
