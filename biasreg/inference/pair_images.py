"""The images and label maps of a pair, from its files."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from biasreg.core.image_io import Image, has_orientation, read_channels
from biasreg.core.pairs import PairFiles
from biasreg.core.transform_io import read_linear_transform
from biasreg.evaluation.metrics import dice_per_label
from biasreg.evaluation.reference_data import read_label_map
from biasreg.inference.prediction import Prediction
from biasreg.inference.record import Accuracy
from biasreg.spatial.native import warp_label_map


@dataclass(frozen=True)
class PairImages:
    """A pair in memory.

    Attributes:
        moving: The moving image, one `Image` per channel.
        fixed: The fixed image, one `Image` per channel.
        moving_labels: Label map on the moving grid.
        fixed_labels: Label map on the fixed grid.
        initial: (4, 4) matrix from fixed to moving points, RAS mm, that replaces the pre-alignment, if any.
        notices: What a user should know about the files.
    """

    moving: tuple[Image, ...]
    fixed: tuple[Image, ...]
    moving_labels: Image | None
    fixed_labels: Image | None
    initial: NDArray[np.float64] | None = None
    notices: tuple[str, ...] = ()


def read_pair_images(pair: PairFiles) -> PairImages:
    """Read the files of a pair.

    Raises:
        ImageError: If a file cannot be read, or a label is negative.
        GeometryError: If a grid is unusable, or a label map is not on its image's grid.
    """
    moving, fixed = read_channels(pair.moving), read_channels(pair.fixed)
    moving_labels, fixed_labels = (
        None if path is None else read_label_map(path, image_path, image.geometry)
        for path, image_path, image in (
            (pair.moving_seg, pair.moving[0], moving[0]),
            (pair.fixed_seg, pair.fixed[0], fixed[0]),
        )
    )
    initial = None if pair.initial is None else read_linear_transform(pair.initial)
    guessed = [path.name for path in (*pair.moving, *pair.fixed) if not has_orientation(path)]
    notices = (
        [
            f"{', '.join(guessed)}: neither sform nor qform is set, so that left and right are a guess, which other "
            "programs make differently"
        ]
        if guessed
        else []
    )
    return PairImages(moving, fixed, moving_labels, fixed_labels, initial, tuple(notices))


def warp_moving_labels(images: PairImages, prediction: Prediction) -> NDArray | None:
    """Bring the moving labels, if there are any, to the fixed grid (X, Y, Z)."""
    if images.moving_labels is None:
        return None
    return warp_label_map(images.moving_labels, prediction.displacement, prediction.fixed)


def measure_accuracy(images: PairImages, warped: NDArray | None) -> Accuracy | None:
    """Measure the overlap of the labels that both maps hold; None where there are not two maps."""
    moving, fixed = images.moving_labels, images.fixed_labels
    if moving is None or fixed is None or warped is None:
        return None
    values = [int(value) for value in np.intersect1d(moving.array, fixed.array) if value != 0]
    maps = (warp_label_map(moving, None, fixed.geometry), warped)
    before, after = (dice_per_label(labels, fixed.array, values) for labels in maps)
    return Accuracy(
        {str(key): score for key, score in before.items()}, {str(key): score for key, score in after.items()}
    )
