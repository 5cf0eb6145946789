"""Answers of checks: one line for each question."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["PASS", "WARN", "FAIL"]
MAX_NAMED = 5  # items that a line names before it says how many more there are


@dataclass(frozen=True)
class CheckLine:
    """The answer to one question.

    Attributes:
        name: What was asked.
        verdict: `FAIL` if it makes no sense to go on before it is mended.
        text: What was found, where, and what to do.
    """

    name: str
    verdict: Verdict
    text: str

    def __str__(self) -> str:
        return f"{self.verdict} {self.name}: {self.text}"


def listed(items: Sequence[str]) -> str:
    """Name a few items, and say how many more there are.

    Args:
        items: Names, or sentences.
    """
    more = len(items) - MAX_NAMED
    return ", ".join(items[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
