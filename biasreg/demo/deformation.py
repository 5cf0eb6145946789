"""Closed-form maps from a subject's world to the atlas: a random affine map, followed by smooth waves.

The waves come in stages, each gentle enough to be one-to-one by construction; their composition is a diffeomorphism.
The inverse needs no grid: in each stage the waves are a contraction, and Banach's iteration finds the point to any
accuracy.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from biasreg.core.errors import InputError

MAX_STEEPNESS = 0.99  # below 1 the map q + w(q) is one-to-one
INVERSION_TOLERANCE_MM = 1e-6
INVERSION_ITERATIONS = 2000  # 0.99 ** 2000 * 10 mm is below the tolerance


@dataclass(frozen=True)
class VariationSettings:
    """How far subjects differ from the atlas and from each other.

    Attributes:
        rotation_degrees: Largest rotation angle, about any axis.
        scale: Largest relative deviation of each of the three scale factors from 1.
        shift_mm: Largest shift along each axis in mm.
        deformation_mm: Upper bound of the length of one stage's displacement in mm; typical lengths are a third of it.
        wavelength_mm: Shortest and longest wavelength of the smooth displacement in mm.
        num_waves: Number of waves that are summed in a stage.
        num_stages: Number of stages.
    """

    rotation_degrees: float = 8.0
    scale: float = 0.08
    shift_mm: float = 5.0
    deformation_mm: float = 10.0
    wavelength_mm: tuple[float, float] = (80.0, 130.0)
    num_waves: int = 5
    num_stages: int = 2

    def __post_init__(self) -> None:
        """Refuse deformations that could fold."""
        steepness = 2 * np.pi * self.deformation_mm / self.wavelength_mm[0]
        if steepness > MAX_STEEPNESS:
            raise InputError(
                f"phantom settings: deformation_mm = {self.deformation_mm:g} over wavelengths from "
                f"{self.wavelength_mm[0]:g} mm gives slopes up to {steepness:.2f}, and above {MAX_STEEPNESS} the map "
                "may fold; lower deformation_mm or raise the shortest wavelength"
            )


@dataclass(frozen=True)
class Waves:
    """The smooth displacement w(q) = Σ_k a_k sin(b_k · q + φ_k), with Σ |a_k| |b_k| < 1.

    Attributes:
        amplitudes: a_k, (K, 3) mm.
        wave_vectors: b_k, (K, 3) radian per mm.
        phases: φ_k, (K,) radian.
    """

    amplitudes: np.ndarray
    wave_vectors: np.ndarray
    phases: np.ndarray


@dataclass(frozen=True)
class AtlasMap:
    """The map g from a subject's world to the atlas, both RAS mm.

    Equation: g = (id + w_S) ∘ … ∘ (id + w_1) ∘ (p ↦ M p + t).

    Attributes:
        matrix: M, (3, 3).
        offset: t, (3,) mm.
        stages: w_1 to w_S.
    """

    matrix: np.ndarray
    offset: np.ndarray
    stages: tuple[Waves, ...]


def random_directions(generator: np.random.Generator, count: int) -> np.ndarray:
    """Draw directions uniformly from the sphere.

    Args:
        generator: Source of randomness.
        count: Number of directions N.

    Returns:
        Unit vectors, (N, 3).
    """
    vectors = generator.standard_normal((count, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_rotation(generator: np.random.Generator, max_degrees: float) -> np.ndarray:
    """Draw a rotation about a random axis by an angle that is uniform in [0, `max_degrees`].

    Args:
        generator: Source of randomness.
        max_degrees: Largest angle in degrees.

    Returns:
        Rotation matrix, (3, 3).
    """
    axis = random_directions(generator, 1)[0]
    angle = np.deg2rad(generator.uniform(0, max_degrees))
    return Rotation.from_rotvec(angle * axis).as_matrix()


def random_atlas_map(settings: VariationSettings, generator: np.random.Generator) -> AtlasMap:
    """Draw one subject's map to the atlas.

    Args:
        settings: Bounds of the random parameters.
        generator: Source of randomness.

    Returns:
        The map.
    """
    rotation = random_rotation(generator, settings.rotation_degrees)
    scales = 1 + generator.uniform(-settings.scale, settings.scale, 3)
    shift = generator.uniform(-settings.shift_mm, settings.shift_mm, 3)
    matrix = rotation * scales
    stages = tuple(_random_waves(settings, generator) for _ in range(settings.num_stages))
    return AtlasMap(matrix=matrix, offset=-matrix @ shift, stages=stages)


def to_atlas(atlas_map: AtlasMap, points: np.ndarray) -> np.ndarray:
    """Evaluate g.

    Args:
        atlas_map: The subject's map.
        points: Points of the subject's world, (..., 3) RAS mm.

    Returns:
        Points of the atlas, (..., 3) RAS mm.
    """
    mapped = points @ atlas_map.matrix.T + atlas_map.offset
    for waves in atlas_map.stages:
        mapped = mapped + _displacement(waves, mapped)
    return mapped


def from_atlas(atlas_map: AtlasMap, points: np.ndarray) -> np.ndarray:
    """Evaluate the inverse of g.

    Args:
        atlas_map: The subject's map.
        points: Points of the atlas, (..., 3) RAS mm.

    Returns:
        Points of the subject's world, (..., 3) RAS mm; each stage is inverted to `INVERSION_TOLERANCE_MM`.

    Raises:
        InputError: A stage's waves are too steep to be one-to-one.
    """
    mapped = np.asarray(points, dtype=np.float64)
    for waves in reversed(atlas_map.stages):
        mapped = _invert(waves, mapped)
    return (mapped - atlas_map.offset) @ np.linalg.inv(atlas_map.matrix).T


def _random_waves(settings: VariationSettings, generator: np.random.Generator) -> Waves:
    """Draw one stage, whose amplitudes sum to `deformation_mm`."""
    count = settings.num_waves
    lengths = generator.uniform(*settings.wavelength_mm, count)
    weights = generator.uniform(0.5, 1.0, count)
    heights = settings.deformation_mm * weights / weights.sum()
    return Waves(
        amplitudes=random_directions(generator, count) * heights[:, None],
        wave_vectors=random_directions(generator, count) * (2 * np.pi / lengths)[:, None],
        phases=generator.uniform(0, 2 * np.pi, count),
    )


def _displacement(waves: Waves, points: np.ndarray) -> np.ndarray:
    """Evaluate w at `points` (..., 3), in mm."""
    angles = points @ waves.wave_vectors.T + waves.phases  # (..., K)
    return np.sin(angles) @ waves.amplitudes


def _invert(waves: Waves, points: np.ndarray) -> np.ndarray:
    """Solve q + w(q) = a for q by Banach's iteration q ← a − w(q), for `points` a (..., 3) in mm."""
    solution = points
    for _ in range(INVERSION_ITERATIONS):
        update = points - _displacement(waves, solution)
        residual = np.linalg.norm(update - solution, axis=-1).max(initial=0.0)
        if residual < INVERSION_TOLERANCE_MM:
            return solution
        solution = update
    raise InputError(
        f"atlas map: its inverse is still {residual:.3g} mm off after {INVERSION_ITERATIONS} iterations, "
        f"not {INVERSION_TOLERANCE_MM:g} mm; use lower or longer waves"
    )
