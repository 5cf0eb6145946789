"""Read what one pair is measured with: reference label maps, landmarks, and the predicted field."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from biasreg.core.errors import GeometryError, ImageError, RecordError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import IMAGE_ENDINGS, Image, read_geometry, read_labels
from biasreg.core.pairs import PairFiles
from biasreg.core.points_io import Points, read_points
from biasreg.core.serialization import file_hash, read_json
from biasreg.core.transform_io import read_displacement

IMAGE_HASH_DIGITS = 16  # 64 bits: of millions of images no two are alike by chance


@dataclass(frozen=True)
class References:
    """Reference data of one pair, in memory; label maps and points are there for both images or for neither.

    Attributes:
        pair: The files.
        geometry: The fixed image's grid.
        images: Hashes of the files of moving and fixed image (first channel), 16 hexadecimal digits.
        labels: Label maps of moving and fixed image.
        points: Landmarks of moving and fixed image.
    """

    pair: PairFiles
    geometry: Geometry
    images: tuple[str, str]
    labels: tuple[Image, Image] | None
    points: tuple[Points, Points] | None


def read_references(pair: PairFiles) -> References:
    """Read the label maps and landmarks of a pair, each kind only where both images have it.

    Raises:
        ImageError: A file cannot be read, a label is negative, or the landmarks have no name in common.
        GeometryError: A label map is not on its image's grid.
    """
    geometry = read_geometry(pair.fixed[0])
    labels = points = None
    if pair.moving_seg is not None and pair.fixed_seg is not None:
        labels = (
            read_label_map(pair.moving_seg, pair.moving[0], read_geometry(pair.moving[0])),
            read_label_map(pair.fixed_seg, pair.fixed[0], geometry),
        )
    if pair.moving_points is not None and pair.fixed_points is not None:
        points = read_points(pair.moving_points), read_points(pair.fixed_points)
        if not set(points[0].names) & set(points[1].names):
            raise ImageError(
                f"no landmark has the same name in {pair.moving_points} ({_first(points[0].names)}) and in "
                f"{pair.fixed_points} ({_first(points[1].names)}); name corresponding landmarks alike"
            )
    return References(pair, geometry, (_image_hash(pair.moving[0]), _image_hash(pair.fixed[0])), labels, points)


def read_prediction(references: References, folder: Path) -> NDArray[np.float32]:
    """Read the pair's displacement `<pair>_warp.nii.gz`, or with another ending that `read_displacement` takes.

    Returns:
        (X, Y, Z, 3), RAS mm, on the fixed image's grid.

    Raises:
        ImageError: There is no such file, more than one, or it is no displacement field.
        GeometryError: It is not on the fixed image's grid.
    """
    stem = f"{references.pair.identifier}_warp"
    paths = [folder / (stem + ending) for ending in IMAGE_ENDINGS if (folder / (stem + ending)).is_file()]
    if not paths:
        raise ImageError(f"{folder / stem}.nii.gz: this pair has no displacement field; register it")
    if len(paths) > 1:
        raise ImageError(f"{folder}: {' and '.join(path.name for path in paths)} are the same pair's field; keep one")
    displacement, geometry = read_displacement(paths[0])
    _check_grid(geometry, paths[0], references.geometry, references.pair.fixed[0])
    return displacement


def read_seconds(folder: Path, identifier: str) -> float | None:
    """Time of the registration from the prediction's provenance `<pair>.json`, where there is one."""
    path = folder / f"{identifier}.json"
    if not path.is_file():
        return None
    record = read_json(path)
    seconds = record.get("seconds") if isinstance(record, dict) else None
    if isinstance(seconds, dict):
        seconds = seconds.get("total")
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise RecordError(f"{path}: seconds: expected a number, got {seconds!r}")
    return float(seconds)


def read_label_map(path: Path, image_path: Path, grid: Geometry) -> Image:
    """Read a label map of an image; prediction and evaluation refuse the same ones.

    Args:
        path: The label map.
        image_path: The image that it belongs to.
        grid: That image's grid.

    Raises:
        ImageError: The file cannot be read, or a label is negative.
        GeometryError: It is not on the image's grid.
    """
    labels = read_labels(path)
    _check_grid(labels.geometry, path, grid, image_path)
    if labels.array.min() < 0:
        raise ImageError(f"{path}: label value {labels.array.min()} is negative; labels are positive, background is 0")
    return labels


def _image_hash(path: Path) -> str:
    try:
        return file_hash(path)[:IMAGE_HASH_DIGITS]
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error}") from error


def _check_grid(geometry: Geometry, path: Path, grid: Geometry, image_path: Path) -> None:
    if not geometry.is_close(grid):
        raise GeometryError(
            f"{path}: grid {geometry.describe()} is not that of the image {image_path}, {grid.describe()}"
            f"{_corner_distance(geometry, grid)}; resample it to that image's own grid"
        )


def _corner_distance(first: Geometry, second: Geometry) -> str:
    """Say how far two grids lie apart that their descriptions may not tell from each other."""
    if first.shape != second.shape:
        return ""
    return f" (corners up to {np.linalg.norm(first.corners - second.corners, axis=1).max():.3g} mm apart)"


def _first(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
