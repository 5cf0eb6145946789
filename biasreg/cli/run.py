"""What every command does around its function: messages on stderr, one line per error, the exit code."""

import logging
import sys
from collections.abc import Callable

from biasreg.core.errors import BiasregError

logger = logging.getLogger(__name__)

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_UNUSABLE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def run_command(function: Callable[[], int | None], *, quiet: bool = False) -> int:
    """Run a command's function and turn its outcome into an exit code.

    Messages of level INFO and above go to stderr as plain text, unless the program that calls has set up logging.

    Args:
        function: The command, its arguments bound; returns an exit code, or None when all is done.
        quiet: Only warnings and errors, and nothing of an interruption, for the further processes of a command.

    Returns:
        The function's code; the error's `exit_code` when it raised a `BiasregError`, whose text is then one line
        `error: …` on stderr; 1, with such a line, when the system refused something (no permission, a full disk); 130
        when interrupted. Any other exception is a fault of the program and is passed on.
    """
    _set_up_logging(logging.WARNING if quiet else logging.INFO)
    try:
        code = function()
    except BiasregError as error:
        _say(f"error: {error}")
        return error.exit_code
    except OSError as error:
        logger.debug("where it happened", exc_info=True)
        _say(f"error: {error}")
        return EXIT_FAILED
    except KeyboardInterrupt as interruption:
        if not quiet:  # all processes of a command are interrupted together
            _say(f"error: {str(interruption) or 'interrupted'}")
        code = getattr(interruption, "exit_code", EXIT_INTERRUPTED)
    return EXIT_DONE if code is None else code


def _say(line: str) -> None:
    """Write a line in one piece, so that lines of several processes do not mix."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _set_up_logging(level: int) -> None:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("biasreg").setLevel(level)
