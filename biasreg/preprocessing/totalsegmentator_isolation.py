"""What TotalSegmentator runs in: no reports, no downloads, no prints, and an end when Ctrl-C is pressed."""

import contextlib
import io
import json
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from biasreg.core.errors import BiasregError
from biasreg.preprocessing.totalsegmentator_weights import checkpoints, missing_weights, weights_folder

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def private_home() -> Iterator[None]:
    """Run with a home folder of TotalSegmentator's that reports nothing and is thrown away; the weights stay theirs.

    Its usage statistics are switched by a file in that folder, in which it also counts its runs; the user's own file is
    only read, for the licence number.
    """
    from totalsegmentator import config  # noqa: PLC0415  an optional dependency

    # Its settings are environment variables, read anew at each call.
    weights, licence = config.get_weights_dir(), config.get_license_number()
    settings = {"totalseg_id": "", "send_usage_stats": False, "statistics_disclaimer_shown": True}
    settings |= {"prediction_counter": 0} | ({"license_number": licence} if licence else {})
    names = ("TOTALSEG_HOME_DIR", "TOTALSEG_WEIGHTS_PATH")
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory(prefix="biasreg_totalsegmentator_") as home:
        (Path(home) / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        os.environ.update(zip(names, (home, str(weights)), strict=True))
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


@contextlib.contextmanager
def no_download(api: Any, *, allowed: bool) -> Iterator[None]:
    """Turn a download that nobody asked for, which has no time-out, into an error."""
    original = api.download_pretrained_weights

    def guarded(number: Any) -> None:
        if not allowed and not checkpoints(weights_folder(number)):
            raise missing_weights([number])
        original(number)

    api.download_pretrained_weights = guarded
    try:
        yield
    finally:
        api.download_pretrained_weights = original


@contextlib.contextmanager
def told_in_our_words(path: Path) -> Iterator[None]:
    """Keep its prints off stdout, and say its failures in our words."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            yield
    except (BiasregError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        said = " ".join(output.getvalue().split())
        reason = f"{type(error).__name__}: {error}" + (f" (it printed: {said})" if said else "")
        raise BiasregError(
            f"TotalSegmentator failed: {reason} · {path} · try another device or --fast; cases that are done are kept"
        ) from error
    finally:
        logger.debug("TotalSegmentator: %s", output.getvalue())


@contextlib.contextmanager
def uninterrupted_children() -> Iterator[None]:
    """Keep Ctrl-C from the processes that nnU-Net starts inside the block, so that this one can end them.

    A pool whose workers die of Ctrl-C, which a terminal sends to all processes, may wait for them for ever. Processes
    inherit which signals are blocked from the thread that starts them; another thread takes the signal meanwhile.
    """
    resource_tracker.ensure_running()  # when it starts later, it unblocks the signal
    done = threading.Event()
    listener = threading.Thread(target=done.wait, daemon=True)
    listener.start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        done.set()
        listener.join()
