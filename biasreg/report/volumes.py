"""The images, labels and field of a registered pair on one grid with RAS axes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from biasreg.core.errors import GeometryError, ImageError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import Image, read_image
from biasreg.core.transform_io import read_displacement
from biasreg.evaluation.reference_data import read_label_map
from biasreg.evaluation.registration_figure import nearest_ras
from biasreg.report.predictions import PredictedPair
from biasreg.spatial.jacobian import jacobian_determinant
from biasreg.spatial.native import displacement_to_voxels, warp_image, warp_label_map


@dataclass(frozen=True)
class SourceImages:
    """A pair as it was given, each on its own grid.

    Attributes:
        moving: First channel of the moving image.
        fixed: First channel of the fixed image.
        moving_labels: Its label map, if there are label maps of both.
        fixed_labels: Likewise.
    """

    moving: Image
    fixed: Image
    moving_labels: Image | None
    fixed_labels: Image | None


@dataclass(frozen=True)
class PairVolumes:
    """A registered pair on the fixed grid, turned to the nearest RAS axes.

    Attributes:
        grid: The grid.
        fixed: (X, Y, Z) float32.
        moving: The moving image in the world of the headers, sampled on the grid.
        warped: The moving image after registration.
        displacement: (3, X, Y, Z) float32, voxels of the grid.
        determinant: (X, Y, Z) float32, of the Jacobian of x + u(x).
        fixed_labels: (X, Y, Z) integer, as the next two; None without label maps.
        moving_labels: In the world of the headers.
        warped_labels: After registration.
    """

    grid: Geometry
    fixed: NDArray[np.float32]
    moving: NDArray[np.float32]
    warped: NDArray[np.float32]
    displacement: NDArray[np.float32]
    determinant: NDArray[np.float32]
    fixed_labels: NDArray | None
    moving_labels: NDArray | None
    warped_labels: NDArray | None


def read_sources(pair: PredictedPair) -> SourceImages:
    """Read the images and label maps of a pair.

    Args:
        pair: The pair, with its images.

    Raises:
        ImageError: The pair has none, or a file cannot be read.
        GeometryError: A label map is not on its image's grid.
    """
    files = pair.images
    if files is None:
        raise ImageError(f"pair {pair.name}: {pair.missing}")
    moving, fixed = read_image(files.moving[0]), read_image(files.fixed[0])
    if files.moving_seg is None or files.fixed_seg is None:
        return SourceImages(moving, fixed, None, None)
    return SourceImages(
        moving,
        fixed,
        read_label_map(files.moving_seg, files.moving[0], moving.geometry),
        read_label_map(files.fixed_seg, files.fixed[0], fixed.geometry),
    )


def read_field(path: Path | None, fixed: Geometry) -> NDArray[np.float32]:
    """Read a field that must lie on the fixed grid.

    Args:
        path: Its file.
        fixed: The fixed grid.

    Returns:
        (X, Y, Z, 3), RAS mm.

    Raises:
        ImageError: There is no such file, or it is no field.
        GeometryError: It lies on another grid.
    """
    if path is None:
        raise ImageError("the pair has no displacement field; register it again")
    displacement, geometry = read_displacement(path)
    if not geometry.is_close(fixed):
        raise GeometryError(
            f"{path}: grid {geometry.describe()} is not that of the fixed image, {fixed.describe()}; register it again"
        )
    return displacement


def pair_volumes(sources: SourceImages, displacement: NDArray[np.float32]) -> PairVolumes:
    """Bring a pair onto the fixed grid, turned to the nearest RAS axes.

    Args:
        sources: The pair.
        displacement: (X, Y, Z, 3), RAS mm on the fixed grid.
    """
    own = sources.fixed.geometry
    fixed, grid = nearest_ras(sources.fixed.array, own)
    field, _ = nearest_ras(displacement, own)
    voxels = displacement_to_voxels(field, grid)
    labels: tuple[NDArray | None, ...] = (None, None, None)
    if sources.fixed_labels is not None and sources.moving_labels is not None:
        labels = (
            nearest_ras(sources.fixed_labels.array, own)[0],
            warp_label_map(sources.moving_labels, None, grid),
            warp_label_map(sources.moving_labels, field, grid),
        )
    return PairVolumes(
        grid,
        fixed,
        warp_image(sources.moving, None, grid),
        warp_image(sources.moving, field, grid),
        voxels[0].numpy(),
        jacobian_determinant(voxels)[0].numpy(),
        *labels,
    )
