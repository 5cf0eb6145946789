"""Linear registration of two images that may show different parts of the anatomy, on coarse grids, by SimpleITK."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from biasreg.core.geometry import Geometry
from biasreg.preprocessing.resampling import shrink
from biasreg.preprocessing.shared_information import HISTOGRAM_BINS, MaskedImage, Overlap, shared_information
from biasreg.preprocessing.translation_search import best_shift

logger = logging.getLogger(__name__)

# Between two subjects, a map beyond these bounds is a failed registration, not anatomy: the change of volume, the
# stretch along any direction, and the turn.
VOLUME_RATIO_BOUNDS = (0.4, 2.5)
STRETCH_BOUNDS = (0.6, 1.6)
LARGEST_TURN_DEG = 60.0
# Of the smaller anatomy at least this part must lie on the other one: less, and nearly anything can be made to fit.
MIN_OVERLAP = 0.5
# The search for the best shift looks at blocks of this many voxels per axis; optimisation does the rest.
SEARCH_BLOCK = 2
# On the fine level the metric looks at this part of the voxels: on 22 head and neck CTs a third of the time of all
# voxels, and Dice as good or better; a fifth lost 0.01.
SAMPLED = 0.3
# Of small grids at least this many voxels are looked at: half of them led a similarity map of 5600 voxels astray.
MIN_SAMPLES = 6000
SAMPLING_SEED = 1


class CoarseImage(NamedTuple):
    """An image on a coarse isotropic grid with RAS axes.

    Attributes:
        array: float32 (X, Y, Z) in [0, 1].
        shown: bool (X, Y, Z), true inside the field of view.
        anatomy: bool (X, Y, Z), true where the anatomy is.
        grid: The grid; both images of a registration have voxels of the same size.
    """

    array: np.ndarray
    shown: np.ndarray
    anatomy: np.ndarray
    grid: Geometry

    def over_anatomy(self) -> MaskedImage:
        """Let the anatomy alone count: its skin does not, which may be a cut field of view."""
        return MaskedImage(self.array, self.anatomy, self.grid)

    def over_view(self) -> MaskedImage:
        """Let all count that is shown, the anatomy's border with it."""
        return MaskedImage(self.array, self.shown, self.grid)


class _Step(NamedTuple):
    """One optimisation: the kind of map, by which factor each level is coarser, and how gradients are found."""

    kind: type[sitk.Transform]
    levels: tuple[int, ...]
    smooth_gradients: bool
    iterations: int


# Smoothing the gradients of whole images takes most of the time of a rigid search, which ends the same without it. All
# voxels of the coarse level count: on half of them a patient went to the wrong vertebra.
SEARCH = _Step(sitk.Euler3DTransform, levels=(2,), smooth_gradients=False, iterations=60)
FOCUS_SEARCH = SEARCH._replace(iterations=40)
# An affine map needs the coarse level first: on the fine one alone it stops early (Dice 0.06 lower). And it ends better
# when size was found before it.
FIT = (
    _Step(sitk.Similarity3DTransform, levels=(1,), smooth_gradients=True, iterations=60),
    _Step(sitk.AffineTransform, levels=(2, 1), smooth_gradients=True, iterations=60),
)


def register_rigid_coarse(fixed: CoarseImage, moving: CoarseImage) -> np.ndarray | None:
    """Register two coarse images rigidly, from two starts.

    One start lays the grids' centres on each other, the other is the shift with the highest masked correlation, which
    finds the way where the fields of view differ. The same images give the same matrix, bit by bit.

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
        problem = _Problem(fixed.over_anatomy(), moving.over_anatomy())
        starts = [centers, *_correlating_start(fixed, moving)]
        found = max((problem.improve(start, SEARCH) for start in starts), key=problem.coverage)
        return found if problem.coverage(found) > problem.coverage(centers) else None


def register_affine_coarse(fixed: CoarseImage, moving: CoarseImage, start: np.ndarray) -> np.ndarray:
    """Improve a rigid map of the whole anatomy by a similarity and an affine map.

    Args:
        fixed: The fixed image.
        moving: The moving image.
        start: (4, 4) matrix from fixed to moving grid coordinates (mm).

    Returns:
        The last of start, similarity and affine map that is plausible and better than the one before.
    """
    with _one_thread():
        return _fitted(_Problem(fixed.over_anatomy(), moving.over_anatomy()), start)


def refine_coarse(fixed: CoarseImage, moving: CoarseImage, starts: Sequence[np.ndarray]) -> np.ndarray:
    """Find the best of several starts by rigid maps of the anatomy, then improve it by similarity and affine maps.

    The anatomy alone tells the right start, the border of what is shown then helps to fit it.

    Args:
        fixed: The fixed image; its masks say where the metric counts.
        moving: The moving image.
        starts: (4, 4) matrices from fixed to moving grid coordinates (mm).

    Returns:
        The last of rigid, similarity and affine map that is plausible and better than the one before.
    """
    with _one_thread():
        search = _Problem(fixed.over_anatomy(), moving.over_anatomy())
        found = max((search.improve(start, FOCUS_SEARCH) for start in starts), key=search.coverage)
        return _fitted(_Problem(fixed.over_view(), moving.over_view()), found)


def is_plausible(matrix: np.ndarray) -> bool:
    """Tell whether a map, a (4, 4) matrix, changes volumes, lengths and directions no more than anatomy does.

    Mirrored maps are not plausible.
    """
    u, stretch, v = np.linalg.svd(matrix[:3, :3])
    if not VOLUME_RATIO_BOUNDS[0] <= np.linalg.det(matrix[:3, :3]) <= VOLUME_RATIO_BOUNDS[1]:
        return False
    turn = np.degrees(np.arccos(np.clip((np.trace(u @ v) - 1) / 2, -1, 1)))
    return bool(stretch.min() >= STRETCH_BOUNDS[0] and stretch.max() <= STRETCH_BOUNDS[1] and turn <= LARGEST_TURN_DEG)


class _Problem:
    """Two masked images, and the metric and optimiser that work on them."""

    def __init__(self, fixed: MaskedImage, moving: MaskedImage) -> None:
        self.fixed, self.moving = fixed, moving
        self.images = [_to_itk(image.array, image.grid) for image in (fixed, moving)]
        self.masks = [_to_itk(image.mask.astype(np.uint8), image.grid) for image in (fixed, moving)]
        self.measured: dict[bytes, Overlap] = {}

    def improve(self, start: np.ndarray, step: _Step) -> np.ndarray:
        """Optimise a map of the step's kind; the start itself is returned where the end is no better."""
        initial = step.kind(3) if step.kind is sitk.AffineTransform else step.kind()
        initial.SetMatrix(start[:3, :3].ravel().tolist())
        initial.SetTranslation(start[:3, 3].tolist())
        method = self._method(step)
        method.SetInitialTransform(initial, inPlace=False)
        try:
            found = _matrix(method.Execute(*self.images))
        except RuntimeError as error:  # SimpleITK's name for "the images no longer overlap"
            logger.debug("registration stopped: %s", error)
            return start
        better = self._overlap(found).information > self._overlap(start).information
        return found if better and self._is_plausible(found) else start

    def coverage(self, matrix: np.ndarray) -> float:
        """Mutual information over both masks, times the share of the fixed one: it compares maps far from each other.

        Near each other information alone decides, because a better fit may well leave less of two unequal masks.
        """
        return self._overlap(matrix).coverage

    def _overlap(self, matrix: np.ndarray) -> Overlap:
        key = matrix.tobytes()
        if key not in self.measured:
            self.measured[key] = shared_information(self.fixed, self.moving, matrix)
        return self.measured[key]

    def _is_plausible(self, matrix: np.ndarray) -> bool:
        if not is_plausible(matrix):
            return False
        ratio = float(np.linalg.det(matrix[:3, :3]))
        smaller = min(np.count_nonzero(self.fixed.mask), np.count_nonzero(self.moving.mask) / ratio)
        return self._overlap(matrix).voxels >= MIN_OVERLAP * smaller

    def _method(self, step: _Step) -> sitk.ImageRegistrationMethod:
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(HISTOGRAM_BINS)
        method.SetMetricFixedMask(self.masks[0])
        method.SetMetricMovingMask(self.masks[1])
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=2.0, minStep=0.01, numberOfIterations=step.iterations, gradientMagnitudeTolerance=1e-6
        )
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel(step.levels)
        method.SetSmoothingSigmasPerLevel([1.0 if factor > 1 else 0.0 for factor in step.levels])
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
        if not step.smooth_gradients:
            method.MetricUseFixedImageGradientFilterOff()
            method.MetricUseMovingImageGradientFilterOff()
        part = max(SAMPLED, MIN_SAMPLES / max(1, int(np.count_nonzero(self.fixed.mask))))
        if part < 1 and 1 in step.levels:
            method.SetMetricSamplingStrategy(method.REGULAR)
            parts = [1.0 if factor > 1 else part for factor in step.levels]
            method.SetMetricSamplingPercentagePerLevel(parts, seed=SAMPLING_SEED)
        return method


def _fitted(problem: _Problem, start: np.ndarray) -> np.ndarray:
    for step in FIT:
        start = problem.improve(start, step)
    return start


def _correlating_start(fixed: CoarseImage, moving: CoarseImage) -> list[np.ndarray]:
    """Find the shift with the highest masked correlation; an empty list where there is none."""
    block = SEARCH_BLOCK * fixed.grid.spacing[0]
    parts = [
        (part.astype(np.float32), image.grid) for image in (fixed, moving) for part in (image.array, image.anatomy)
    ]
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
