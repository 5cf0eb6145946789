"""The picture of a pair, from images and a displacement on their native grids."""

from pathlib import Path

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

from biasreg.core.geometry import Geometry
from biasreg.core.image_io import Image
from biasreg.evaluation.figures import pair_figure
from biasreg.spatial.jacobian import jacobian_determinant
from biasreg.spatial.native import displacement_to_voxels, warp_image, warp_label_map


def registration_figure(
    path: Path,
    moving: Image,
    fixed: Image,
    displacement: NDArray[np.float32],
    *,
    labels: tuple[Image, Image] | None = None,
    title: str = "",
) -> None:
    """Draw a registered pair as PNG, the fixed grid turned to the nearest RAS axes.

    Args:
        path: Where to write the PNG.
        moving: The moving image on its own grid.
        fixed: The fixed image.
        displacement: (X, Y, Z, 3) RAS mm on the fixed grid.
        labels: Label maps of moving and fixed image.
        title: Title of the picture.
    """
    array, grid = nearest_ras(fixed.array, fixed.geometry)
    field, _ = nearest_ras(displacement, fixed.geometry)
    voxels = displacement_to_voxels(field, grid)
    fixed_labels = warped_labels = None
    if labels is not None:
        fixed_labels, _ = nearest_ras(labels[1].array, fixed.geometry)
        warped_labels = warp_label_map(labels[0], field, grid)
    pair_figure(
        path,
        array,
        warp_image(moving, None, grid),
        warp_image(moving, field, grid),
        voxels[0].numpy(),
        jacobian_determinant(voxels)[0].numpy(),
        fixed_labels=fixed_labels,
        warped_labels=warped_labels,
        spacing=grid.spacing,
        title=title,
    )


def nearest_ras(array: NDArray, geometry: Geometry) -> tuple[NDArray, Geometry]:
    """Flip and permute the axes of an array so that they point as nearly as possible right, anterior, superior.

    Args:
        array: (X, Y, Z) or (X, Y, Z, N) on `geometry`.
        geometry: Its grid.

    Returns:
        The same voxels in the new order, and their grid.
    """
    orientation = orientations.io_orientation(geometry.affine)
    turned = np.ascontiguousarray(orientations.apply_orientation(array, orientation))
    affine = geometry.affine @ orientations.inv_ornt_aff(orientation, geometry.shape)
    return turned, Geometry.from_affine(affine, turned.shape[:3])
