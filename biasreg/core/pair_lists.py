"""Lists of pairs, `pairs.json` and `pairs.csv`, as they are written."""

import csv
import re
from dataclasses import dataclass, fields
from pathlib import Path

from biasreg.core.errors import ImageError, RecordError
from biasreg.core.image_io import strip_ending
from biasreg.core.serialization import from_json, read_json

CHANNEL_SEPARATOR = ";"
"""Separates the files of several channels in one cell of `pairs.csv`."""

_CHANNEL_SUFFIX = re.compile(r"_\d{4}$")
_FOREIGN_SEPARATORS = {";": "';'", "\t": "tabs", "|": "'|'"}


@dataclass(frozen=True)
class ListedPair:
    """One entry of a list; paths are relative to the list."""

    moving: str | tuple[str, ...]
    fixed: str | tuple[str, ...]
    id: str | None = None
    moving_seg: str | None = None
    fixed_seg: str | None = None
    moving_points: str | None = None
    fixed_points: str | None = None
    fixed_mask: str | None = None
    initial: str | None = None

    @property
    def moving_files(self) -> tuple[str, ...]:
        """Files of the moving image, one per channel."""
        return (self.moving,) if isinstance(self.moving, str) else self.moving

    @property
    def fixed_files(self) -> tuple[str, ...]:
        """Files of the fixed image, one per channel."""
        return (self.fixed,) if isinstance(self.fixed, str) else self.fixed

    @property
    def identifier(self) -> str:
        """Name of the pair: its id, else `<moving>_to_<fixed>`."""
        names = [_case_name(files[0]) for files in (self.moving_files, self.fixed_files) if files]
        return self.id or "_to_".join(names)


def read_json_list(path: Path) -> list[ListedPair]:
    """Read `pairs.json`: a list of objects with the fields of `ListedPair`.

    Raises:
        RecordError: The file cannot be read or does not fit.
    """
    return from_json(list[ListedPair], read_json(path), where=str(path))


def read_csv_list(path: Path) -> list[ListedPair]:
    """Read `pairs.csv`: a header with names of fields of `ListedPair`, and one row per pair; blanks around cells go.

    Raises:
        RecordError: The file cannot be read, is separated by something else than commas, or a row does not fit.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="further cells", skipinitialspace=True, strict=True)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            rows = [(reader.line_num, row) for row in reader]
            columns = reader.fieldnames
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecordError(f"{path}: cannot be read as CSV: {error}") from error
    _check_separator(path, columns)
    return [_entry(row, f"{path}: line {line}") for line, row in rows]


def _case_name(file: str) -> str:
    try:
        return _CHANNEL_SUFFIX.sub("", strip_ending(Path(file).name)[0])
    except ImageError:
        return Path(file).stem


def _check_separator(path: Path, columns: list[str]) -> None:
    for separator, name in _FOREIGN_SEPARATORS.items():
        if len(columns) == 1 and separator in columns[0]:
            raise RecordError(
                f"{path}: the columns are separated by {name}, but commas are needed; save the table with commas"
                f" ('{CHANNEL_SEPARATOR}' stands between the files of several channels)"
            )


def _entry(row: dict[str, str], where: str) -> ListedPair:
    if "further cells" in row:
        known = ", ".join(field.name for field in fields(ListedPair))
        raise RecordError(f"{where}: has more cells than the header; the columns are {known}")
    data: dict[str, str | list[str]] = {key: value.strip() for key, value in row.items() if value and value.strip()}
    for role in ("moving", "fixed"):
        if role in data:
            data[role] = [part.strip() for part in str(data[role]).split(CHANNEL_SEPARATOR)]
    return from_json(ListedPair, data, where=where)
