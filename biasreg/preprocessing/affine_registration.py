"""Affine registration of two images that may show different parts of the anatomy, on coarse grids, by SimpleITK."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from biasreg.core.geometry import Geometry
from biasreg.preprocessing.resampling import shrink
from biasreg.preprocessing.translation_search import best_shift

logger = logging.getLogger(__name__)

HISTOGRAM_BINS = 32
ITERATIONS_PER_LEVEL = 60
SHRINK_FACTORS = (2, 1)
SMOOTHING_SIGMAS_VOXELS = (1.0, 0.0)
# An affine map that changes volumes beyond these bounds between two subjects is a failed registration, not anatomy.
VOLUME_RATIO_BOUNDS = (0.4, 2.5)
# Of the smaller anatomy at least this part must lie on the other one: less, and nearly anything can be made to fit.
MIN_OVERLAP = 0.5
# The search for the best shift looks at blocks of this many voxels per axis; optimisation does the rest.
SEARCH_BLOCK = 2


class CoarseImage(NamedTuple):
    """An image on a coarse isotropic grid with RAS axes.

    Attributes:
        array: float32 (X, Y, Z) in [0, 1].
        mask: bool (X, Y, Z), true where the anatomy is shown.
        grid: The grid; both images of a registration have voxels of the same size.
    """

    array: np.ndarray
    mask: np.ndarray
    grid: Geometry


def register_coarse(fixed: CoarseImage, moving: CoarseImage) -> np.ndarray | None:
    """Register two coarse images: from two starts rigidly, then from the better end by similarity and affine maps.

    One start lays the grids' centres on each other, the other is the shift with the highest masked correlation, which
    finds the way where the fields of view differ. Mutual information counts where both masks are true. The same images
    give the same matrix, bit by bit.

    Args:
        fixed: The fixed image.
        moving: The moving image.

    Returns:
        (4, 4) matrix from fixed to moving grid coordinates (mm); None if nothing plausible is better than the centres.

    Source:
        Mattes et al. 2003 (doi:10.1109/TMI.2003.809072) for the metric, in SimpleITK.
    """
    centers = np.eye(4)
    with _one_thread():
        problem = _Problem(fixed, moving)
        starts = [centers, *_correlating_start(fixed, moving)]
        found = min((problem.improve(start, sitk.Euler3DTransform()) for start in starts), key=problem.cost)
        for kind in (sitk.Similarity3DTransform(), sitk.AffineTransform(3)):
            found = problem.improve(found, kind)
        return None if found is centers or not problem.cost(found) < problem.cost(centers) else found


def refine_coarse(fixed: CoarseImage, moving: CoarseImage) -> np.ndarray:
    """Improve an alignment that both images are sampled in already: rigidly, then by an affine map.

    Args:
        fixed: The fixed image; its mask says where the metric counts.
        moving: The moving image, on a grid of the same centre.

    Returns:
        (4, 4) matrix from fixed to moving grid coordinates (mm); the identity if nothing plausible is better.
    """
    found = np.eye(4)
    with _one_thread():
        problem = _Problem(fixed, moving)
        for kind in (sitk.Euler3DTransform(), sitk.AffineTransform(3)):
            found = problem.improve(found, kind)
    return found


def is_plausible_volume(matrix: np.ndarray) -> bool:
    """Tell whether an affine map, a (4, 4) matrix, changes volumes no more than anatomy does, and does not mirror."""
    return bool(VOLUME_RATIO_BOUNDS[0] <= np.linalg.det(matrix[:3, :3]) <= VOLUME_RATIO_BOUNDS[1])


class _Problem:
    """Two images with masks, and the metric and optimiser that work on them."""

    def __init__(self, fixed: CoarseImage, moving: CoarseImage) -> None:
        self.fixed, self.moving = fixed, moving
        self.images = (_to_itk(fixed.array, fixed.grid), _to_itk(moving.array, moving.grid))
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(HISTOGRAM_BINS)
        method.SetMetricFixedMask(_to_itk(fixed.mask.astype(np.uint8), fixed.grid))
        method.SetMetricMovingMask(_to_itk(moving.mask.astype(np.uint8), moving.grid))
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=2.0, minStep=0.01, numberOfIterations=ITERATIONS_PER_LEVEL, gradientMagnitudeTolerance=1e-6
        )
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel(SHRINK_FACTORS)
        method.SetSmoothingSigmasPerLevel(SMOOTHING_SIGMAS_VOXELS)
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
        self.method = method

    def improve(self, start: np.ndarray, kind: sitk.Transform) -> np.ndarray:
        """Optimise a transform of the given kind; the start itself is returned where the end is no better."""
        if not isinstance(kind, sitk.Euler3DTransform):  # a rigid one starts as a shift
            kind.SetMatrix(start[:3, :3].ravel().tolist())
        kind.SetTranslation(start[:3, 3].tolist())
        self.method.SetInitialTransform(kind, inPlace=False)
        try:
            found = _matrix(self.method.Execute(*self.images))
        except RuntimeError as error:  # SimpleITK's name for "the images no longer overlap"
            logger.debug("affine registration stopped: %s", error)
            return start
        return found if self._is_plausible(found) and self.cost(found) < self.cost(start) else start

    def cost(self, matrix: np.ndarray) -> float:
        """Negative mutual information where both masks are true; infinite where they do not overlap."""
        transform = sitk.AffineTransform(3)
        transform.SetMatrix(matrix[:3, :3].ravel().tolist())
        transform.SetTranslation(matrix[:3, 3].tolist())
        self.method.SetInitialTransform(transform, inPlace=False)
        try:
            return float(self.method.MetricEvaluate(*self.images))
        except RuntimeError:
            return float("inf")

    def _is_plausible(self, matrix: np.ndarray) -> bool:
        if not is_plausible_volume(matrix):
            return False
        ratio = float(np.linalg.det(matrix[:3, :3]))
        indices = np.linalg.inv(self.moving.grid.affine) @ matrix @ self.fixed.grid.affine
        warped = ndimage.affine_transform(
            self.moving.mask, indices[:3, :3], indices[:3, 3], output_shape=self.fixed.mask.shape, order=0
        )
        smaller = min(np.count_nonzero(self.fixed.mask), np.count_nonzero(self.moving.mask) / ratio)
        return bool(np.count_nonzero(warped & self.fixed.mask) >= MIN_OVERLAP * smaller)


def _correlating_start(fixed: CoarseImage, moving: CoarseImage) -> list[np.ndarray]:
    """Find the shift with the highest masked correlation; an empty list where there is none."""
    block = SEARCH_BLOCK * fixed.grid.spacing[0]
    parts = [(part.astype(np.float32), image.grid) for image in (fixed, moving) for part in (image.array, image.mask)]
    (still, grid), (still_mask, _), (moved, moved_grid), (moved_mask, _) = (shrink(*part, block) for part in parts)
    shift = best_shift(still, still_mask > 0.5, moved, moved_mask > 0.5, MIN_OVERLAP)
    if shift is None:
        return []
    matrix = np.eye(4)
    matrix[:3, 3] = shift * np.array(grid.spacing) + np.array(moved_grid.origin) - np.array(grid.origin)
    return [matrix]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let ITK compute on one thread: several add up the metric in an order, and to a sum, that differ between runs."""
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def _to_itk(array: np.ndarray, grid: Geometry) -> sitk.Image:
    """Registration needs no LPS: both coarse images live in one frame of our own."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    return image


def _matrix(transform: sitk.Transform) -> np.ndarray:
    """The (4, 4) matrix of a linear SimpleITK transform, read off its action on four points."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(tuple(axis))) - origin for axis in np.eye(3)]
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack(columns, axis=1)
    matrix[:3, 3] = origin
    return matrix
