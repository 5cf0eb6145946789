"""Pre-alignment: bringing each case into the canonical frame before the network sees it.

Every case gets one frame, so that the cost grows with cases and not with pairs; a pair's pre-alignment is the
composition of the two frames.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import SimpleITK as sitk

from biasreg.core.dataset import Case
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import Image, read_image, read_labels
from biasreg.planning.fingerprint import AlignmentScores, world_box
from biasreg.planning.foreground import bounding_box, foreground_mask
from biasreg.preprocessing.resampling import labels_to_canonical, to_canonical

logger = logging.getLogger(__name__)

COARSE_VOXELS_PER_SIDE = 48  # affine registration works on a grid of about this many voxels along the longest side
HISTOGRAM_BINS = 32
ITERATIONS_PER_LEVEL = 60
SHRINK_FACTORS = (2, 1)
# An affine map that changes volumes beyond these bounds between two subjects is a failed registration, not anatomy.
VOLUME_RATIO_BOUNDS = (0.4, 2.5)


def foreground_center(image: Image, modality: str) -> np.ndarray:
    """Find the centre of the box around the anatomy.

    Args:
        image: The image.
        modality: Its modality.

    Returns:
        (3,) world coordinates, RAS mm.
    """
    return np.array(world_box(image.geometry, bounding_box(foreground_mask(image.array, modality)))[0])


def translation(offset: Sequence[float] | np.ndarray) -> np.ndarray:
    """Build the (4, 4) matrix of a shift.

    Args:
        offset: (3,) mm.

    Returns:
        The matrix.
    """
    matrix = np.eye(4)
    matrix[:3, 3] = offset
    return matrix


def register_affine(fixed: Image, moving: Image, modalities: tuple[str, str]) -> np.ndarray:
    """Register two images by an affine map: mutual information, from the foreground centres, coarse to fine.

    Both images are first sampled on a coarse isotropic grid. Rigid registration is followed by affine registration; the
    start is kept, with a notice, whenever the result is not better or not plausible. The same images give the same
    matrix, bit by bit.

    Args:
        fixed: The fixed image.
        moving: The moving image.
        modalities: Modality of the fixed and of the moving image.

    Returns:
        (4, 4) matrix that maps fixed world points (RAS mm) to moving world points.

    Source:
        Mattes et al. 2003 (doi:10.1109/TMI.2003.809072), in SimpleITK.
    """
    centers = [foreground_center(image, name) for image, name in zip((fixed, moving), modalities, strict=True)]
    spacing = max(*fixed.geometry.extent_mm, *moving.geometry.extent_mm) / COARSE_VOXELS_PER_SIDE
    coarse_fixed, coarse_moving = (
        _coarse_image(image, center, spacing, name)
        for image, center, name in zip((fixed, moving), centers, modalities, strict=True)
    )
    # Both coarse images are centred on their own foreground, so the start is the identity between them.
    found = start = sitk.AffineTransform(3)
    with _one_thread():
        method = _registration_method()
        for transform in (sitk.Euler3DTransform(), sitk.AffineTransform(3)):
            initial = _as_type(found, transform)
            candidate = _optimize(method, coarse_fixed, coarse_moving, initial)
            if _is_better(method, coarse_fixed, coarse_moving, candidate, found):
                found = candidate
    if found is start:
        logger.warning("affine registration did not improve on aligned centres; the centres are kept")
    return translation(centers[1]) @ _matrix(found) @ translation(-centers[0])


def measure_alignment(reference: Case, case: Case) -> AlignmentScores:
    """Score how well a case lies on the reference case without pre-alignment, by centres, and by affine registration.

    Args:
        reference: The reference case.
        case: The case.

    Returns:
        The three scores: mean Dice of the labels that both show, or correlation of intensities without labels.
    """
    fixed, moving = read_image(reference.images[0]), read_image(case.images[0])
    modalities = (reference.modality, case.modality)
    centers = [foreground_center(image, name) for image, name in zip((fixed, moving), modalities, strict=True)]
    candidates = {
        "none": np.eye(4),
        "center": translation(centers[1] - centers[0]),
        "affine": register_affine(fixed, moving, modalities),
    }
    spacing = max(fixed.geometry.extent_mm) / COARSE_VOXELS_PER_SIDE
    shape = _grid_shape(np.array(fixed.geometry.extent_mm) * 1.2, spacing)
    grid = Geometry.centered(shape, (spacing,) * 3)
    frame = translation(fixed.geometry.center)
    score = _label_score if reference.labels and case.labels else _intensity_score
    files = (reference.labels, case.labels) if reference.labels and case.labels else (None, None)
    pair = (read_labels(files[0]), read_labels(files[1])) if files[0] and files[1] else (fixed, moving)
    scores = {name: score(*pair, grid, frame, matrix @ frame) for name, matrix in candidates.items()}
    return AlignmentScores(case=case.identifier, **scores)


def _label_score(
    fixed: Image, moving: Image, grid: Geometry, fixed_frame: np.ndarray, moving_frame: np.ndarray
) -> float:
    values = [int(value) for value in np.intersect1d(fixed.array, moving.array) if value > 0]
    if not values:
        return 0.0
    first = labels_to_canonical(fixed.array, fixed.geometry, grid, fixed_frame, values)
    second = labels_to_canonical(moving.array, moving.geometry, grid, moving_frame, values)
    scores = []
    for index in range(1, len(values) + 1):
        size = np.count_nonzero(first == index) + np.count_nonzero(second == index)
        scores.append(2 * np.count_nonzero((first == index) & (second == index)) / size if size else 0.0)
    return float(np.mean(scores))


def _intensity_score(
    fixed: Image, moving: Image, grid: Geometry, fixed_frame: np.ndarray, moving_frame: np.ndarray
) -> float:
    first = to_canonical(fixed.array, fixed.geometry, grid, fixed_frame, fill=float(fixed.array.min()))
    second = to_canonical(moving.array, moving.geometry, grid, moving_frame, fill=float(moving.array.min()))
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def _grid_shape(extent_mm: np.ndarray, spacing: float) -> tuple[int, int, int]:
    x, y, z = (int(size) for size in np.maximum(np.ceil(extent_mm / spacing), 8))
    return x, y, z


def _coarse_image(image: Image, center: np.ndarray, spacing: float, modality: str) -> sitk.Image:
    """Sample an image on a coarse world-aligned grid around its foreground centre, intensities clipped to [0, 1]."""
    mask = foreground_mask(image.array, modality)
    low, high = np.percentile(image.array[mask], (1, 99))
    _, extent = world_box(image.geometry, bounding_box(mask))
    grid = Geometry.centered(_grid_shape(np.array(extent) * 1.1, spacing), (spacing,) * 3)
    array = to_canonical(image.array, image.geometry, grid, translation(center), fill=float(image.array.min()))
    scaled = np.clip((array - low) / max(high - low, 1e-12), 0, 1).astype(np.float32)
    coarse = sitk.GetImageFromArray(np.ascontiguousarray(scaled.T))
    coarse.SetSpacing(grid.spacing)  # registration needs no LPS: both coarse images live in one frame of our own
    coarse.SetOrigin(grid.origin)
    return coarse


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let ITK compute on one thread: several add up the metric in an order, and to a sum, that differ between runs."""
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def _registration_method() -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(HISTOGRAM_BINS)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=0.01, numberOfIterations=ITERATIONS_PER_LEVEL, gradientMagnitudeTolerance=1e-6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(SHRINK_FACTORS)
    method.SetSmoothingSigmasPerLevel([1.0, 0.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    return method


def _optimize(
    method: sitk.ImageRegistrationMethod, fixed: sitk.Image, moving: sitk.Image, initial: sitk.Transform
) -> sitk.Transform:
    method.SetInitialTransform(initial, inPlace=False)
    try:
        result = method.Execute(fixed, moving)
    except RuntimeError as error:  # SimpleITK's name for "the images no longer overlap"
        logger.warning("affine registration stopped (%s); its start is kept", str(error).strip().splitlines()[-1])
        return initial
    matrix = _matrix(result)
    plain = sitk.AffineTransform(3)
    plain.SetMatrix(matrix[:3, :3].ravel().tolist())
    plain.SetTranslation(matrix[:3, 3].tolist())
    return plain


def _is_better(
    method: sitk.ImageRegistrationMethod,
    fixed: sitk.Image,
    moving: sitk.Image,
    candidate: sitk.Transform,
    current: sitk.Transform,
) -> bool:
    ratio = np.linalg.det(_matrix(candidate)[:3, :3])
    if not VOLUME_RATIO_BOUNDS[0] <= ratio <= VOLUME_RATIO_BOUNDS[1]:
        return False
    values = []
    for transform in (candidate, current):
        method.SetInitialTransform(transform, inPlace=False)
        values.append(method.MetricEvaluate(fixed, moving))
    return bool(values[0] < values[1])  # SimpleITK gives the negative mutual information


def _as_type(transform: sitk.Transform, kind: sitk.Transform) -> sitk.Transform:
    """Give a linear transform the type of `kind`; a rigid one takes only what the identity start holds."""
    matrix = _matrix(transform)
    if isinstance(kind, sitk.AffineTransform):
        kind.SetMatrix(matrix[:3, :3].ravel().tolist())
    kind.SetTranslation(matrix[:3, 3].tolist())
    return kind


def _matrix(transform: sitk.Transform) -> np.ndarray:
    """The (4, 4) matrix of a linear SimpleITK transform, read off its action on four points."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(tuple(axis))) - origin for axis in np.eye(3)]
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack(columns, axis=1)
    matrix[:3, 3] = origin
    return matrix
