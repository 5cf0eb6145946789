"""All files of a pair, or none: results appear in the output folder only once the pair is complete."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from biasreg.core.errors import RecordError
from biasreg.core.serialization import read_record
from biasreg.inference.record import PredictionRecord


def record_path(folder: Path, pair: str) -> Path:
    """Name the record of a pair.

    Args:
        folder: Output folder.
        pair: Identifier of the pair.

    Returns:
        `<folder>/<pair>.json`.
    """
    return folder / f"{pair}.json"


def read_earlier_record(folder: Path, pair: str) -> PredictionRecord | None:
    """Read the record of a pair that an earlier run registered.

    Args:
        folder: Output folder.
        pair: Identifier of the pair.

    Returns:
        The record; None if there is none, or none of this version.
    """
    try:
        return read_record(record_path(folder, pair), PredictionRecord)
    except RecordError:
        return None


@contextmanager
def staged(folder: Path, pair: str) -> Iterator[Path]:
    """Give a hidden folder whose files move to the output folder if the block ends without an error.

    The files of an earlier run are replaced then, those that its record names and that are not made again are removed;
    on an error they stay as they are. The record comes last, so that a pair with a record is complete.

    Args:
        folder: Output folder, on the same disk as the hidden folder inside.
        pair: Identifier of the pair.

    Yields:
        The hidden folder, empty; the block writes the pair's files and its record there.
    """
    hidden = folder / f".{pair}.partial"
    shutil.rmtree(hidden, ignore_errors=True)  # of a run that was killed
    hidden.mkdir()
    try:
        yield hidden
        _replace(hidden, folder, pair)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _replace(hidden: Path, folder: Path, pair: str) -> None:
    record = record_path(hidden, pair)
    made = [path for path in sorted(hidden.iterdir()) if path != record]
    earlier = read_earlier_record(folder, pair)
    record_path(folder, pair).unlink(missing_ok=True)
    if earlier is not None:
        for name in earlier.outputs:
            if Path(name).name == name and name.startswith(f"{pair}_"):
                (folder / name).unlink(missing_ok=True)
    for path in made:
        path.replace(folder / path.name)
    record.replace(record_path(folder, pair))
