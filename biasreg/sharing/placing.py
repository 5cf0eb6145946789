"""Files that appear at a second place without taking room twice."""

import logging
import os
import shutil
from pathlib import Path

logger = logging.getLogger(__name__)


def place_file(source: Path, target: Path, *, copy: bool) -> None:
    """Link a file; copy it where that is asked for, or where the disk or the system has no hard links.

    Args:
        source: The file; of a symbolic link, what it leads to.
        target: The second place, where nothing is yet; its folder is made if it is missing.
        copy: Copy in any case.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            os.link(source.resolve(), target)
            return
        except FileExistsError:
            raise
        except OSError as error:
            logger.debug("%s is copied: %s", source, error)
    shutil.copyfile(source, target)
