"""Pre-alignment by transforms that the user gives with listed pairs: how the frame of one case follows from another's.

Pairs are the edges of a graph, cases its nodes. In each connected part one case, the anchor, gets its frame as planned;
from there the transforms lead to every other case.
"""

from collections import defaultdict, deque
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from biasreg.core.dataset_json import DatasetJson, PairNames
from biasreg.core.errors import ImageError
from biasreg.core.geometry import apply_affine
from biasreg.core.image_io import image_files, read_geometry
from biasreg.core.serialization import content_hash, file_hash
from biasreg.core.transform_io import read_linear_transform

CYCLE_TOLERANCE_MM = 1.0
"""Ways from one image to another may differ by so much at its corners: less than a voxel of most scans."""

Matrix = npt.NDArray[np.float64]


class Step(NamedTuple):
    """A transform on the way from one case to another: its file, and whether it is inverted."""

    path: Path
    inverted: bool


@dataclass(frozen=True)
class GivenFrame:
    """How the frame of a case follows from that of another one.

    Attributes:
        anchor: Identifier of the case whose frame is found as planned.
        anchor_images: Its image files.
        steps: The transforms that lead from the anchor's world to that of the case, the first one first.
    """

    anchor: str
    anchor_images: tuple[Path, ...]
    steps: tuple[Step, ...]

    @property
    def matrix(self) -> Matrix:
        """(4, 4) matrix from the anchor's world to that of the case, RAS mm.

        Raises:
            ImageError: A file cannot be read, or holds no usable linear transform.
        """
        return _product(self.steps)

    @property
    def content_hash(self) -> str:
        """Hash of all that the frame follows from: the transforms with their directions, and the anchor's images."""
        steps = [[file_hash(step.path), step.inverted] for step in self.steps]
        return content_hash(
            [self.anchor, [file_hash(file) for path in self.anchor_images for file in image_files(path)], steps]
        )


def given_frames(folder: Path, json: DatasetJson, images: Mapping[str, tuple[Path, ...]]) -> dict[str, GivenFrame]:
    """Find the cases whose frame follows from another one's; no transform is read.

    The anchor of a connected part is the fixed case of its first pair, and the way to a case is the shortest one; of
    equally short ones the one of the pairs that are listed first.

    Args:
        folder: The raw dataset.
        json: Its `dataset.json`.
        images: Image files of the cases that are there.

    Returns:
        Frames by case identifier; none for anchors and for cases of no pair with a transform.
    """
    edges: dict[str, list[tuple[str, Step]]] = defaultdict(list)
    pairs = list(_pairs_with_transforms(json, images).values())
    for pair in pairs:
        path = folder / str(pair.initial)
        edges[pair.fixed].append((pair.moving, Step(path, inverted=False)))
        edges[pair.moving].append((pair.fixed, Step(path, inverted=True)))
    ways: dict[str, tuple[str, tuple[Step, ...]]] = {}
    for pair in pairs:
        if pair.fixed not in ways:
            ways |= _ways_from(pair.fixed, edges)
    return {case: GivenFrame(anchor, images[anchor], steps) for case, (anchor, steps) in ways.items() if steps}


def _ways_from(anchor: str, edges: Mapping[str, list[tuple[str, Step]]]) -> dict[str, tuple[str, tuple[Step, ...]]]:
    ways: dict[str, tuple[str, tuple[Step, ...]]] = {anchor: (anchor, ())}
    reached = deque([anchor])
    while reached:
        case = reached.popleft()
        for other, step in edges[case]:
            if other not in ways:
                ways[other] = (anchor, (*ways[case][1], step))
                reached.append(other)
    return ways


def initial_faults(json: DatasetJson) -> list[str]:
    """Find what `dataset.json` says of transforms that cannot be followed; no file is looked at.

    Args:
        json: The contents of `dataset.json`.

    Returns:
        One line for each fault.
    """
    given = {f"pairs[{index}]": pair.initial for index, pair in enumerate(json.pairs) if pair.initial is not None}
    missing = [f"pairs[{index}]" for index, pair in enumerate(json.pairs) if pair.initial is None]
    if not given:
        return []
    name, path = next(iter(given.items()))
    if json.pairing != "listed":
        return [
            f'{name}.initial: transforms count with pairing "listed" alone, but it is "{json.pairing}"; change the '
            "pairing, or remove them"
        ]
    if missing:
        return [
            f"{name}.initial: there is {path}, but no transform of {', '.join(missing)}; give all training pairs one, "
            "or none"
        ]
    return []


def transform_faults(folder: Path, json: DatasetJson, images: Mapping[str, tuple[Path, ...]]) -> list[str]:
    """Read all transforms of a dataset, and see that they agree where several ways join two cases.

    Args:
        folder: The raw dataset.
        json: Its `dataset.json`.
        images: Image files of the training cases that are there.

    Returns:
        One line for each fault.
    """
    faults = []
    named = {
        f"{table}[{index}]": pair
        for table, pairs in (("pairs", json.pairs), ("test_pairs", json.test_pairs))
        for index, pair in enumerate(pairs)
    }
    for name, pair in named.items():
        if pair.initial is not None:
            try:
                read_linear_transform(folder / pair.initial)
            except ImageError as error:
                faults.append(f"{name}.initial: {error}")
    return faults or list(_disagreements(folder, json, images))


def _disagreements(folder: Path, json: DatasetJson, images: Mapping[str, tuple[Path, ...]]) -> Iterator[str]:
    """Compare each pair that closes a circle with the way around it."""
    frames = given_frames(folder, json, images)
    for name, pair in _pairs_with_transforms(json, images).items():
        step = Step(folder / str(pair.initial), inverted=False)
        to_moving, to_fixed = (frames[case].steps if case in frames else () for case in (pair.moving, pair.fixed))
        if to_moving == (*to_fixed, step) or to_fixed == (*to_moving, step._replace(inverted=True)):
            continue  # the pair is itself on the way
        around = _product(to_moving) @ np.linalg.inv(_product(to_fixed))
        with suppress(ImageError):  # of the image, which is reported as a fault of its own
            corners = read_geometry(images[pair.fixed][0]).corners
            yield from _distance_fault(name, pair, corners, (read_linear_transform(step.path), around))


def _distance_fault(name: str, pair: PairNames, corners: Matrix, matrices: tuple[Matrix, Matrix]) -> Iterator[str]:
    direct, around = (apply_affine(matrix, corners) for matrix in matrices)
    distances = np.linalg.norm(direct - around, axis=1)
    worst = int(distances.argmax())
    if distances[worst] > CYCLE_TOLERANCE_MM:
        places = [f"({', '.join(f'{value:.1f}' for value in points[worst])})" for points in (corners, direct, around)]
        yield (
            f"{name}.initial: {pair.initial} takes the corner {places[0]} of {pair.fixed} to {places[1]} of "
            f"{pair.moving}, but the other pairs that join these cases take it to {places[2]} (RAS mm): "
            f"{distances[worst]:.1f} mm apart, {CYCLE_TOLERANCE_MM:g} mm are allowed; correct one of them, or remove "
            "the pair"
        )


def _product(steps: Iterable[Step]) -> Matrix:
    product = np.eye(4)
    for step in steps:
        matrix = read_linear_transform(step.path)
        product = (np.linalg.inv(matrix) if step.inverted else matrix) @ product
    return product


def _pairs_with_transforms(json: DatasetJson, cases: Container[str]) -> dict[str, PairNames]:
    """Training pairs with a transform whose cases are there, by their place in `dataset.json`."""
    pairs = json.pairs if json.pairing == "listed" else ()
    return {
        f"pairs[{index}]": pair
        for index, pair in enumerate(pairs)
        if pair.initial is not None and pair.moving in cases and pair.fixed in cases
    }
