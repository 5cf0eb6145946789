"""What a rule gives: a decision and its reason."""

from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Decision(NamedTuple, Generic[T]):
    """A decision and the reason for it."""

    value: T
    why: str
