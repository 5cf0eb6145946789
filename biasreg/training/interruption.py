"""Stopping a run from outside, without losing a step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from biasreg.core.errors import TrainingError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingStoppedError(TrainingError):
    """A signal ended training after its state was saved.

    Args:
        signal_number: The signal; the command ends with 128 plus this, as shells do.
        message: What the user reads.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StoppedAtOnceError(KeyboardInterrupt):
    """A second signal ended training in the middle of a step, without saving.

    Args:
        signal_number: The signal.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__("interrupted at once; --c goes on from the latest checkpoint")
        self.exit_code = 128 + signal_number


class StopRequest:
    """Remembers the first signal that asked the run to stop.

    Attributes:
        signal_number: That signal, or None.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __bool__(self) -> bool:
        """Tell whether the run was asked to stop."""
        return self.signal_number is not None

    @property
    def signal_name(self) -> str:
        """Name of that signal, as users know it."""
        assert self.signal_number is not None  # asked for only once there is one
        name = signal.Signals(self.signal_number).name
        return f"{name} (Ctrl-C)" if self.signal_number == signal.SIGINT else name

    def _handle(self, signal_number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise StoppedAtOnceError(signal_number)  # asked twice: do not even finish the step
        self.signal_number = signal_number


@contextmanager
def watch_signals() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request that the loop looks at between steps; a second signal stops at once.

    Outside the main thread, where Python handles no signals, the request is never set.

    Yields:
        The request.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    former = {number: signal.signal(number, request._handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
