"""Integrity of a raw dataset: every fault of every case, found before anything is computed."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from biasreg.core.dataset import SPLITS, Case, Dataset, Split, group_channels, scan_cases
from biasreg.core.errors import DatasetError, ImageError, format_faults
from biasreg.core.geometry import Geometry, apply_affine
from biasreg.core.given_frames import transform_faults
from biasreg.core.image_io import VOLUME_ENDINGS, Image, read_image, read_labels
from biasreg.core.parallel import map_cases
from biasreg.core.points_io import read_points
from biasreg.core.pseudo_labels import stale_faults

logger = logging.getLogger(__name__)

_COMPANIONS = ("labels", "masks", "landmarks")
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class _Grid:
    """The grid that everything of a case must lie on, and the file that it was read from."""

    path: Path
    geometry: Geometry


def verify_dataset(dataset: Dataset, executor: Executor | None = None) -> None:
    """Check all cases, training and held-out, and report all faults together; name files that are not used.

    Args:
        dataset: The dataset.
        executor: Checks cases in parallel, for example a `ProcessPoolExecutor`.

    Raises:
        DatasetError: One line for each fault, with the case, the file, both values, and what to do.
        BiasregError: A worker ran out of memory or died.
    """
    faults: list[str] = []
    cases: list[Case] = []
    for split in SPLITS:
        found, name_faults = scan_cases(dataset.folder, dataset.json, split)
        cases += found
        faults += [*name_faults, *_orphan_faults(dataset, split)]
        _report_unused(dataset, split)
    faults += [*_shared_case_faults(dataset), *_shared_subject_faults(cases)]
    training = {case.identifier: case.images for case in cases if _place(case) == "imagesTr"}
    faults += transform_faults(dataset.folder, dataset.json, training)
    if not any(_place(case) == "imagesTr" for case in cases):
        faults.append(f"imagesTr holds no complete case; expected files such as case_0000{dataset.json.file_ending}")
    # A case may lie in both splits by mistake.
    arguments = {f"{_place(case)}/{case.identifier}": (case, dataset.label_values) for case in cases}
    faults += _faults_of_each(check_case, arguments, executor, "verification")
    completed = {case.identifier: (case, dataset.json.labels) for case in cases if case.pseudo}
    faults += _faults_of_each(stale_faults, completed, executor, "pseudo-labels")
    if faults:
        raise DatasetError(format_faults(dataset.folder, faults))


def _faults_of_each(
    check: Callable[..., list[str]], arguments: Mapping[str, tuple[Any, ...]], executor: Executor | None, topic: str
) -> list[str]:
    if executor is None or not arguments:
        results = [check(*values) for values in arguments.values()]
    else:
        results = list(map_cases(check, arguments, executor, topic).values())
    return [fault for found in results for fault in found]


def check_case(case: Case, label_values: Sequence[int]) -> list[str]:
    """Read all files of a case.

    Args:
        case: The case.
        label_values: Values of the foreground labels.

    Returns:
        One line for each fault; empty when the case is sound.
    """
    grid, faults = _check_images(case.images)
    if case.labels is not None:
        faults += _check_label_map(case.labels, grid, label_values)
    if case.mask is not None:
        faults += _check_mask(case.mask, grid)
    if case.landmarks is not None:
        faults += _check_landmarks(case.landmarks, grid)
    return [f"case {case.identifier}: {' '.join(fault.split())}" for fault in faults]


def _check_images(paths: Sequence[Path]) -> tuple[_Grid | None, list[str]]:
    """Return the grid of the first readable channel, and the faults of all."""
    grid, faults = None, []
    for path in paths:
        try:
            image = read_image(path)
        except ImageError as error:
            faults.append(str(error))
            continue
        if image.array.min() == image.array.max():
            faults.append(
                f"{path}: every voxel has the value {image.array.min():g}, so that there is nothing to register;"
                " replace or remove the file"
            )
        faults += _grid_faults(path, image.geometry, grid)
        grid = grid or _Grid(path, image.geometry)
    return grid, faults


def _check_label_map(path: Path, grid: _Grid | None, label_values: Sequence[int]) -> list[str]:
    image, faults = _read_on_grid(path, grid)
    if image is None:
        return faults
    present = np.unique(image.array)
    unknown = [int(value) for value in present if value != 0 and value not in label_values]
    if unknown:
        faults.append(
            f"{path}: holds the label values {unknown}, but dataset.json knows {[0, *label_values]};"
            " name them there or remove them from the file"
        )
    if not present.any():
        faults.append(f"{path}: holds background only; draw the labels or remove the file")
    return faults


def _check_mask(path: Path, grid: _Grid | None) -> list[str]:
    image, faults = _read_on_grid(path, grid)
    if image is not None and not image.array.any():
        faults.append(f"{path}: the mask is empty, so that no voxel would count; draw it or remove the file")
    return faults


def _read_on_grid(path: Path, grid: _Grid | None) -> tuple[Image | None, list[str]]:
    try:
        image = read_labels(path)
    except ImageError as error:
        return None, [str(error)]
    return image, _grid_faults(path, image.geometry, grid)


def _check_landmarks(path: Path, grid: _Grid | None) -> list[str]:
    try:
        points = read_points(path)
    except ImageError as error:
        return [str(error)]
    if grid is None:
        return []
    voxels = apply_affine(np.linalg.inv(grid.geometry.affine), points.coordinates)
    inside = np.all((voxels >= -0.5) & (voxels <= np.array(grid.geometry.shape) - 0.5), axis=1)
    if inside.any():
        return []
    return [
        f"{path}: none of the {len(points.names)} landmarks lies inside the image {grid.path.name}"
        f" ({grid.geometry.describe()}); coordinates must be LPS mm"
    ]


def _grid_faults(path: Path, geometry: Geometry, grid: _Grid | None) -> list[str]:
    if grid is None or geometry.is_close(grid.geometry):
        return []
    return [
        f"{path}: its grid ({_precise(geometry, grid.geometry)}) is not that of {grid.path.name}"
        f" ({_precise(grid.geometry, geometry)}); resample it onto that image's grid"
    ]


def _precise(geometry: Geometry, other: Geometry) -> str:
    """Describe a grid, with all digits where the short form would not tell two grids apart."""
    short = geometry.describe()
    return short if short != other.describe() else f"affine {np.round(geometry.affine[:3], 6).tolist()}"


def _orphan_faults(dataset: Dataset, split: Split) -> list[str]:
    """Find label maps, masks and landmarks that belong to no image."""
    cases = group_channels(dataset.folder / f"images{split}", dataset.json)[0]
    faults = []
    for kind in _COMPANIONS:
        wanted = ".csv" if kind == "landmarks" else dataset.json.file_ending
        folder = dataset.folder / f"{kind}{split}"
        for path in _visible(folder):
            if not _has_data_ending(path, kind):
                continue
            if not path.name.endswith(wanted):
                faults.append(f"{folder.name}/{path.name} does not end in {wanted}; convert or remove the file")
            elif (name := path.name[: -len(wanted)]) not in cases:
                faults.append(
                    f"case {name}: {folder.name}/{path.name} belongs to no image in images{split};"
                    " add the image, or rename or remove the file"
                )
    return faults


def _report_unused(dataset: Dataset, split: Split) -> None:
    """Name what lies among the files of the cases and is none of them, in one line for each folder."""
    for kind in ("images", *_COMPANIONS):
        folder = dataset.folder / f"{kind}{split}"
        names = [path.name for path in _visible(folder) if not _is_meant_as_data(path, kind)]
        if names:
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            shown = ", ".join(names[:_NAMES_SHOWN]) + more
            logger.warning("%s: left aside, because such files are not read: %s", folder, shown)


def _visible(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.name[0] != "."] if folder.is_dir() else []


def _is_meant_as_data(path: Path, kind: str) -> bool:
    """Tell whether a file is data by its ending, or holds the voxels of an .mhd beside it."""
    return _has_data_ending(path, kind) or path.with_suffix(".mhd").is_file()


def _has_data_ending(path: Path, kind: str) -> bool:
    """Tell whether a file's ending is that of a volume, of any format, or among label maps and the like of points."""
    endings = VOLUME_ENDINGS if kind == "images" else (*VOLUME_ENDINGS, ".csv")
    return path.name.lower().endswith(endings)


def _shared_case_faults(dataset: Dataset) -> list[str]:
    training, held_out = (set(group_channels(dataset.folder / f"images{split}", dataset.json)[0]) for split in SPLITS)
    return [
        f"case {name}: lies in both imagesTr and imagesTs; a case is for training or held out, so remove one"
        for name in sorted(training & held_out)
    ]


def _shared_subject_faults(cases: Sequence[Case]) -> list[str]:
    """Find subjects with other cases held out than trained on; a case in both splits is a fault of its own."""
    names: dict[str, dict[str, set[str]]] = {}
    for case in cases:
        names.setdefault(case.subject, {}).setdefault(_place(case), set()).add(case.identifier)
    return [
        f"subject {subject}: has {', '.join(sorted(places['imagesTr']))} in imagesTr and"
        f" {', '.join(sorted(places['imagesTs']))} in imagesTs, so that what is held out is known from training;"
        " keep all cases of a subject on one side"
        for subject, places in sorted(names.items())
        if len(places) > 1 and places["imagesTr"] != places["imagesTs"]
    ]


def _place(case: Case) -> str:
    return case.images[0].parent.name
