"""Landmarks and keypoints of Learn2Reg, which are in voxels and without names, as points in the world."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from biasreg.core.errors import BiasregError, ImageError
from biasreg.core.geometry import apply_affine
from biasreg.core.image_io import read_geometry
from biasreg.core.points_io import Points
from biasreg.sharing.learn2reg_folder import KNOWN_FOLDERS, Learn2RegFolder, SourceImage

LANDMARKS = "landmarks"


def read_all_points(source: Learn2RegFolder, notices: list[str]) -> dict[str, Points]:
    """Read the points of all images: a case's landmarks, which people set, else its keypoints.

    Line n of the files of one subject's images is one place of the anatomy, so its points are named alike. Points of
    different subjects never are.

    Args:
        source: The dataset.
        notices: What could not be taken is added here.

    Returns:
        Points by case, in RAS mm.
    """
    found: dict[str, list[Points]] = {}
    for what in _point_sets(source.folder):
        files = source.files(what, ".csv")
        if what != LANDMARKS and (
            twice := sorted(case for case in files if case in found and _has_landmarks(source, case))
        ):
            notices.append(f"{what} of {len(twice)} case(s) are left out, for they have landmarks: {twice[0]} for one")
            files = {case: path for case, path in files.items() if case not in twice}
        for case, points in _read_set(what, files, source.images, notices).items():
            found.setdefault(case, []).append(points)
    return {case: _together(parts) for case, parts in found.items()}


def _has_landmarks(source: Learn2RegFolder, case: str) -> bool:
    return case in source.files(LANDMARKS, ".csv")


def _point_sets(folder: Path) -> list[str]:
    """Beginnings of the names of the folders with points, landmarks first: ThoraxCBCT has keypoints01 and 02."""
    names = {path.name[:-2] for path in folder.iterdir() if path.is_dir() and KNOWN_FOLDERS.fullmatch(path.name)}
    return sorted(
        (name for name in names if name.startswith((LANDMARKS, "keypoints"))), key=lambda n: (n != LANDMARKS, n)
    )


def _read_set(
    what: str, files: Mapping[str, Path], images: Mapping[str, SourceImage], notices: list[str]
) -> dict[str, Points]:
    voxels: dict[str, npt.NDArray[np.float64]] = {}
    for case, path in files.items():
        try:
            voxels[case] = _read_voxels(path)
        except BiasregError as error:
            notices.append(f"points left out: {error}")
    for subject in sorted({images[case].subject for case in voxels}):
        own = [case for case in voxels if images[case].subject == subject]
        counts = {len(voxels[case]) for case in own}
        if len(counts) > 1:
            notices.append(
                f"{what} of {', '.join(own)} differ in number, so that lines do not belong together; left out"
            )
            voxels = {case: points for case, points in voxels.items() if case not in own}
    return {case: _in_world(what, images[case], points, notices) for case, points in voxels.items()}


def _in_world(what: str, image: SourceImage, voxels: npt.NDArray[np.float64], notices: list[str]) -> Points:
    geometry = read_geometry(image.path)
    outside = int(((voxels < -0.5) | (voxels > np.array(geometry.shape) - 0.5)).any(axis=1).sum())
    if outside:
        notices.append(
            f"{outside} of {len(voxels)} {what} of {image.case} lie outside the image; they are taken all the same"
        )
    names = tuple(f"{image.subject}_{what}_{number}" for number in range(1, len(voxels) + 1))
    return Points(names, apply_affine(geometry.affine, voxels))


def _together(parts: Sequence[Points]) -> Points:
    names = tuple(name for points in parts for name in points.names)
    return Points(names, np.concatenate([points.coordinates for points in parts]))


def _read_voxels(path: Path) -> npt.NDArray[np.float64]:
    """Read lines of three numbers, voxels of the array's axes from 0; a first line of words is passed over."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(cell.strip() for cell in row)]
    if rows and not _is_number(rows[0][0]):
        rows = rows[1:]
    try:
        values = np.array(rows, dtype=np.float64)
    except ValueError as error:
        raise ImageError(f"{path}: a line is not of three numbers ({error}); correct it") from error
    if values.ndim != 2 or values.shape[1] != 3 or not np.isfinite(values).all():
        raise ImageError(f"{path}: expected lines of three finite numbers, got an array of shape {values.shape}")
    return values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
