"""Named points from CSV files (LPS mm, as ANTs takes them) and to such files."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from biasreg.core.errors import ImageError
from biasreg.core.geometry import ras_to_lps
from biasreg.core.paths import check_readable
from biasreg.core.serialization import atomic_write

AXES = ("x", "y", "z")
NAME_COLUMNS = ("name", "label")

_WRITTEN_DECIMALS = 6  # of a mm; what follows is rounding of float32 displacements
_WRITTEN_COLUMNS = ("x", "y", "z", "t", "name")
"""antsApplyTransformsToPoints takes the first columns, whatever their header says, and wants a t."""


@dataclass(frozen=True)
class Points:
    """Named points.

    Attributes:
        names: N different names.
        coordinates: (N, 3) float64, world position in RAS+ mm.
    """

    names: tuple[str, ...]
    coordinates: npt.NDArray[np.float64]


@dataclass(frozen=True)
class PointTable:
    """The points of a CSV file with all else that the file says of them.

    Attributes:
        header: Names of the columns, as written.
        rows: Cells of each point.
        coordinates: (N, 3) float64, world position in RAS+ mm.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    coordinates: npt.NDArray[np.float64]


def read_point_table(path: Path | str, *, ras: bool = False) -> PointTable:
    """Read points with all columns of their file.

    Args:
        path: CSV with columns `x`, `y`, `z` and any others.
        ras: Whether the file is in RAS mm, not in LPS mm as ANTs takes it.

    Raises:
        ImageError: The file is missing, a column is missing, or a coordinate is no finite number.
    """
    header, lower, rows = _read_rows(Path(path))
    _check_axes(path, lower)
    coordinates = np.array([_position(path, line, lower, cells) for line, cells in rows], dtype=np.float64)
    if not rows:
        raise ImageError(f"{path}: holds no point; add points")
    cells = tuple(tuple(cells) for _, cells in rows)
    return PointTable(tuple(header), cells, coordinates if ras else np.asarray(ras_to_lps(coordinates)))


def write_point_table(path: Path | str, table: PointTable, *, ras: bool = False) -> None:
    """Write points with their other columns, in the order of the columns of their file, atomically.

    Args:
        path: Ends in `.csv`.
        table: The points; the cells of x, y and z follow `coordinates`.
        ras: Whether to write RAS mm, not LPS mm.
    """
    columns = [[name.lower() for name in table.header].index(axis) for axis in AXES]
    positions = table.coordinates if ras else ras_to_lps(table.coordinates)
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table.header)
        for row, position in zip(table.rows, positions, strict=True):
            cells = list(row)
            for column, value in zip(columns, position, strict=True):
                cells[column] = repr(round(float(value), _WRITTEN_DECIMALS) + 0.0)  # no -0.0
            writer.writerow(cells)


def read_points(path: Path | str) -> Points:
    """Read points from a CSV file in LPS mm.

    The header names the columns `x`, `y`, `z` and, if the points have names, `name` or `label`; further columns (`t`,
    `comment`) are ignored. A point without a name is called by its number, from 1.

    Returns:
        The points, in RAS mm, in the order of the file.

    Raises:
        ImageError: The file is missing, a column is missing, a coordinate is no finite number, or a name stands twice.
    """
    _, header, rows = _read_rows(Path(path))
    _check_axes(path, header)
    names: dict[str, int] = {}
    coordinates = []
    for line, cells in rows:
        row = dict(zip(header, cells, strict=False))
        coordinates.append(_position(path, line, header, cells))
        name = _name(row) or str(len(names) + 1)
        if name in names:
            raise ImageError(f"{path}: line {line}: the name {name} stands in line {names[name]} already; rename one")
        names[name] = line
    if not names:
        raise ImageError(f"{path}: holds no point; add points or remove the file")
    return Points(tuple(names), np.asarray(ras_to_lps(coordinates), dtype=np.float64))


def write_points(path: Path | str, points: Points) -> None:
    """Write points as CSV with columns x, y, z, t (always 0) and name, in LPS mm, atomically.

    Args:
        path: Ends in `.csv`.
        points: Points in RAS mm.
    """
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_WRITTEN_COLUMNS)
        for name, position in zip(points.names, ras_to_lps(points.coordinates), strict=True):
            writer.writerow([*(repr(float(value)) for value in position), 0, name])


def _read_rows(path: Path) -> tuple[list[str], list[str], list[tuple[int, list[str]]]]:
    """Return the header, the same in lower case, and the line number and cells of each line that is not empty."""
    check_readable(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ImageError(f"{path}: cannot be read as CSV: {error}") from error
    if not rows:
        raise ImageError(f"{path}: is empty; start the file with a line such as x,y,z,name")
    return rows[0][1], [cell.lower() for cell in rows[0][1]], rows[1:]


def _check_axes(path: Any, header: list[str]) -> None:
    missing = [axis for axis in AXES if axis not in header]
    if missing:
        raise ImageError(
            f"{path}: line 1: there is no column {', '.join(missing)} (found: {', '.join(header)});"
            " start the file with a line such as x,y,z,name"
        )


def _position(path: Any, line: int, header: list[str], cells: list[str]) -> list[float]:
    row = dict(zip(header, cells, strict=False))
    return [_coordinate(path, line, axis, row.get(axis, "")) for axis in AXES]


def _coordinate(path: Any, line: int, axis: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ImageError(f"{path}: line {line}: {axis} must be a finite number in mm, got {text!r}; correct it")
    return value


def _name(row: dict[str, str]) -> str:
    """Return the point's name; ANTs writes nan in place of texts."""
    texts = (row.get(column, "") for column in NAME_COLUMNS)
    return next((text for text in texts if text and text.lower() != "nan"), "")
