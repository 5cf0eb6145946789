"""What a self-check answers: one line for each question."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from biasreg.core.errors import InputError

logger = logging.getLogger(__name__)

Verdict = Literal["PASS", "WARN", "FAIL"]
MAX_NAMED = 5  # items that a line names before it says how many more there are


@dataclass(frozen=True)
class CheckLine:
    """The answer to one question.

    Attributes:
        name: What was asked.
        verdict: `FAIL` if training makes no sense before it is mended.
        text: What was found, where, and what to do.
    """

    name: str
    verdict: Verdict
    text: str

    def __str__(self) -> str:
        return f"{self.verdict} {self.name}: {self.text}"


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


def listed(items: Sequence[str]) -> str:
    """Name a few items, and say how many more there are.

    Args:
        items: Names, or sentences.
    """
    more = len(items) - MAX_NAMED
    return ", ".join(items[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
