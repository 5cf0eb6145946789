"""Synthetic subjects: the atlas seen through a known smooth map, on a scanner grid of its own.

As every map is known in closed form, so is the true displacement between any two subjects.
"""

from dataclasses import dataclass, field

import numpy as np

from biasreg.core.errors import InputError
from biasreg.core.geometry import Geometry, apply_affine
from biasreg.core.points_io import Points
from biasreg.demo.anatomy import atlas_at, landmarks
from biasreg.demo.deformation import (
    AtlasMap,
    VariationSettings,
    from_atlas,
    random_atlas_map,
    random_directions,
    random_rotation,
    to_atlas,
)

AXIS_OF_LETTER = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
NEGATIVE_LETTERS = "LPI"
BIAS_WAVELENGTH_MM = (150.0, 300.0)  # receive coils vary over about the size of the body
NUM_BIAS_WAVES = 3
CONTRAST_GAMMA = 0.12  # log-deviation of the contrast curve between subjects


@dataclass(frozen=True)
class ScannerSettings:
    """How the images of different subjects differ in grid and in signal.

    Attributes:
        orientations: Orientation codes that grids are drawn from.
        oblique_fraction: Share of grids that are rotated out of the world's axes.
        oblique_degrees: Largest angle of that rotation.
        field_of_view_mm: Mean extent along world x, y, z; varies by up to `field_of_view_variation`.
        field_of_view_variation: Relative deviation of the extent.
        center_offset_mm: Largest offset, along each axis, of the grid's centre from the body's.
        spacing_mm: Smallest and largest voxel size in the first two array axes.
        anisotropic_fraction: Share of grids whose third array axis is coarser.
        anisotropy: Factor by which it is coarser.
        noise: Standard deviation of the Rician noise, relative to full signal.
        bias: Largest log-deviation of the smooth bias field.
        gain: Smallest and largest signal of the brightest tissue.
    """

    orientations: tuple[str, ...] = ("RAS", "LPS", "LAS", "PSR")
    oblique_fraction: float = 0.25
    oblique_degrees: float = 10.0
    field_of_view_mm: tuple[float, float, float] = (148.0, 120.0, 156.0)
    field_of_view_variation: float = 0.04
    center_offset_mm: float = 4.0
    spacing_mm: tuple[float, float] = (2.3, 2.8)
    anisotropic_fraction: float = 0.4
    anisotropy: float = 1.2
    noise: float = 0.03
    bias: float = 0.25
    gain: tuple[float, float] = (600.0, 1200.0)


@dataclass(frozen=True)
class PhantomSettings:
    """What a synthetic dataset holds.

    Attributes:
        num_training_cases: Number of cases to learn from.
        num_test_cases: Number of held-out cases, with landmarks.
        num_test_pairs: Number of held-out pairs, at most n (n − 1) for n test cases.
        num_unlabelled_cases: How many of the training cases, counted from the last, have no label map.
        name: Name of the dataset's folder.
        variation: How subjects differ.
        scanner: How images differ.
    """

    num_training_cases: int = 12
    num_test_cases: int = 5
    num_test_pairs: int = 8
    num_unlabelled_cases: int = 0
    name: str = "Dataset900_Demo"
    variation: VariationSettings = field(default_factory=VariationSettings)
    scanner: ScannerSettings = field(default_factory=ScannerSettings)


@dataclass(frozen=True)
class PhantomCase:
    """One synthetic subject.

    Attributes:
        image: Signal, (X, Y, Z) float32, not negative.
        labels: Label values, (X, Y, Z) uint8.
        geometry: Grid of both.
        atlas_map: The true map from the subject's world to the atlas.
    """

    image: np.ndarray
    labels: np.ndarray
    geometry: Geometry
    atlas_map: AtlasMap


def make_case(settings: PhantomSettings, generator: np.random.Generator) -> PhantomCase:
    """Draw a subject and image it.

    Args:
        settings: What subjects and images look like.
        generator: Source of all randomness.

    Returns:
        The case.
    """
    atlas_map = random_atlas_map(settings.variation, generator)
    geometry = _random_geometry(settings.scanner, from_atlas(atlas_map, np.zeros(3)), generator)
    points = voxel_centers(geometry)
    signal, labels = atlas_at(to_atlas(atlas_map, points))
    image = _acquire(signal, points, settings.scanner, generator)
    return PhantomCase(
        image=image.reshape(geometry.shape).astype(np.float32),
        labels=labels.reshape(geometry.shape),
        geometry=geometry,
        atlas_map=atlas_map,
    )


def true_displacement(moving: PhantomCase, fixed: PhantomCase, points: np.ndarray) -> np.ndarray:
    """Evaluate the true displacement d(p) = g_m⁻¹(g_f(p)) − p, with g the subjects' maps to the atlas.

    Args:
        moving: Moving case.
        fixed: Fixed case.
        points: Points of the fixed world, (..., 3) RAS mm.

    Returns:
        Displacement to the corresponding points of the moving world, (..., 3) RAS mm.
    """
    return from_atlas(moving.atlas_map, to_atlas(fixed.atlas_map, points)) - points


def case_landmarks(case: PhantomCase) -> Points:
    """Find the atlas's landmarks in a case.

    Args:
        case: The case.

    Returns:
        The same names for every case, at the case's own points in RAS mm.
    """
    names, points = landmarks()
    return Points(names=names, coordinates=from_atlas(case.atlas_map, points))


def voxel_centers(geometry: Geometry) -> np.ndarray:
    """List the voxels' centres.

    Args:
        geometry: A grid of N voxels.

    Returns:
        Points in the order of a raveled array, (N, 3) RAS mm.
    """
    indices = np.indices(geometry.shape).reshape(3, -1).T
    return apply_affine(geometry.affine, indices)


def _random_geometry(scanner: ScannerSettings, center: np.ndarray, generator: np.random.Generator) -> Geometry:
    """Draw a grid around `center` (3,) RAS mm."""
    code = scanner.orientations[generator.integers(len(scanner.orientations))]
    direction = _direction(code)
    variation = generator.uniform(-1, 1, 3) * scanner.field_of_view_variation
    extent = np.abs(direction.T) @ (np.array(scanner.field_of_view_mm) * (1 + variation))
    if generator.random() < scanner.oblique_fraction:
        direction = random_rotation(generator, scanner.oblique_degrees) @ direction

    spacing = np.full(3, generator.uniform(*scanner.spacing_mm))
    if generator.random() < scanner.anisotropic_fraction:
        spacing[2] *= scanner.anisotropy
    spacing = spacing.round(2)  # as scanners write it
    shape = np.ceil(extent / spacing).astype(int)
    offset = generator.uniform(-1, 1, 3) * scanner.center_offset_mm
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = center + offset - affine[:3, :3] @ ((shape - 1) / 2)
    return Geometry.from_affine(affine, (int(shape[0]), int(shape[1]), int(shape[2])))


def _direction(code: str) -> np.ndarray:
    """Turn an orientation code as "LPS" into a (3, 3) matrix whose column a points along array axis a."""
    if sorted(AXIS_OF_LETTER.get(letter, -1) for letter in code) != [0, 1, 2]:
        raise InputError(
            f"phantom settings: orientation {code!r} does not name each of R/L, A/P and S/I once; "
            "give codes such as RAS or LPS"
        )
    direction = np.zeros((3, 3))
    for axis, letter in enumerate(code):
        direction[AXIS_OF_LETTER[letter], axis] = -1.0 if letter in NEGATIVE_LETTERS else 1.0
    return direction


def _acquire(
    signal: np.ndarray, points: np.ndarray, scanner: ScannerSettings, generator: np.random.Generator
) -> np.ndarray:
    """Turn the atlas's signal (N,) at `points` (N, 3) into an MR magnitude (N,): contrast, bias, noise, gain."""
    contrast = signal ** np.exp(generator.uniform(-CONTRAST_GAMMA, CONTRAST_GAMMA))
    lengths = generator.uniform(*BIAS_WAVELENGTH_MM, NUM_BIAS_WAVES)
    wave_vectors = random_directions(generator, NUM_BIAS_WAVES) * (2 * np.pi / lengths)[:, None]
    phases = generator.uniform(0, 2 * np.pi, NUM_BIAS_WAVES)
    log_bias = scanner.bias * np.sin(points @ wave_vectors.T + phases).mean(axis=1)
    noise = scanner.noise * generator.standard_normal((2, len(signal)))
    magnitude = np.hypot(contrast * np.exp(log_bias) + noise[0], noise[1])
    return magnitude * generator.uniform(*scanner.gain)
