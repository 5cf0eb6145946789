"""Writing a registered pair to disk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from biasreg.core.errors import GeometryError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import write_image
from biasreg.core.serialization import atomic_write
from biasreg.core.transform_io import write_composite_transform, write_displacement, write_learn2reg
from biasreg.inference.inversion import inverse_error_map
from biasreg.inference.prediction import Prediction
from biasreg.spatial.jacobian import jacobian_determinant
from biasreg.spatial.native import displacement_to_voxels

SAVE_CHOICES = ("jacobian", "folding", "inverse_error", "uncertainty", "h5", "learn2reg", "levels", "features")


@dataclass(frozen=True)
class OutputFiles:
    """Where the results of one pair go.

    Attributes:
        folder: Output folder.
        pair: Pair identifier.
        ending: File ending of images; displacement fields are always `.nii.gz`.
    """

    folder: Path
    pair: str
    ending: str = ".nii.gz"

    def path(self, suffix: str, ending: str | None = None) -> Path:
        """Name one file.

        Args:
            suffix: What the file holds, for example `warp`.
            ending: File ending; that of images when None.

        Returns:
            `<folder>/<pair>_<suffix><ending>`.
        """
        return self.folder / f"{self.pair}_{suffix}{self.ending if ending is None else ending}"


def check_save(pair: str, moving: Geometry, fixed: Geometry, save: Sequence[str]) -> None:
    """Refuse outputs that a pair cannot have, before it is registered.

    Args:
        pair: Pair identifier.
        moving: Grid of the moving image.
        fixed: Grid of the fixed image.
        save: Further outputs out of `SAVE_CHOICES`.

    Raises:
        GeometryError: If Learn2Reg's field is wanted of images that do not share a grid.
    """
    if "learn2reg" in save and not moving.is_close(fixed):
        raise GeometryError(
            f"{pair}_disp.nii.gz: Learn2Reg's field counts the voxels of one grid that both images share, but the"
            f" moving image has {moving.describe()}, the fixed image {fixed.describe()}; resample the moving image to"
            " the fixed image's grid, or do without learn2reg"
        )


def write_prediction(files: OutputFiles, prediction: Prediction, save: Sequence[str] = ()) -> None:
    """Write the fields and the warped image of a pair, and what else is asked for.

    Args:
        files: Where to.
        prediction: The registered pair; it must hold levels, features and uncertainty where these are asked for.
        save: Further outputs out of `SAVE_CHOICES`.

    Raises:
        GeometryError: If Learn2Reg's field is wanted of images that do not share a grid; nothing is written then.
        ImageError: If a displacement does not fit its grid or is not finite.
    """
    fixed, moving = prediction.fixed, prediction.moving
    check_save(files.pair, moving, fixed, save)
    write_displacement(files.path("warp", ".nii.gz"), prediction.displacement, fixed)
    write_displacement(files.path("inverse_warp", ".nii.gz"), prediction.inverse, moving)
    for index, channel in enumerate(prediction.warped):
        suffix = "warped" if len(prediction.warped) == 1 else f"warped_{index:04d}"
        write_image(files.path(suffix), channel, fixed)
    if "h5" in save:
        write_composite_transform(files.path("warp", ".h5"), prediction.displacement, fixed)
    for level, displacement in prediction.levels.items() if "levels" in save else ():
        write_displacement(files.path(f"level{level}_warp", ".nii.gz"), displacement, fixed)
    if "features" in save:
        with atomic_write(files.path("features", ".npz")) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **cast(dict[str, Any], prediction.features))
    for name, array in _maps(prediction, save):
        write_image(files.path(name), array, fixed)
    if "learn2reg" in save:
        voxels = displacement_to_voxels(prediction.displacement, fixed)
        write_learn2reg(files.path("disp", ".nii.gz"), np.moveaxis(voxels[0].numpy(), 0, -1), fixed)


def _maps(prediction: Prediction, save: Sequence[str]) -> Iterator[tuple[str, NDArray]]:
    """Give the maps on the fixed grid that are asked for, by name."""
    if "jacobian" in save or "folding" in save:
        determinant = jacobian_determinant(displacement_to_voxels(prediction.displacement, prediction.fixed))[0].numpy()
        if "jacobian" in save:
            yield "jacobian", determinant
        if "folding" in save:
            yield "folding", ~(determinant > 0)
    if "inverse_error" in save:
        there = prediction.displacement, prediction.fixed
        lengths, inside = inverse_error_map(*there, prediction.inverse, prediction.moving)
        yield "inverse_error", np.where(inside, lengths, np.float32(0))
    if "uncertainty" in save and prediction.uncertainty is not None:
        yield "uncertainty", prediction.uncertainty


def write_labels(files: OutputFiles, labels: NDArray[np.integer], fixed: Geometry) -> None:
    """Write the warped label map of a pair.

    Args:
        files: Where to.
        labels: (X, Y, Z) on the fixed grid.
        fixed: The fixed grid.
    """
    write_image(files.path("warped_seg"), labels, fixed)
