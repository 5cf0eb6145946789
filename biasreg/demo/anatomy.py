"""The atlas: a torso with seven organs, evaluated in closed form at any point, so that no resampling blurs it.

World is RAS+ mm with the torso's centre at the origin: +x is the subject's right, where the liver is. Left and right
differ in every pair of organs, so that a mirrored axis shows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

LABELS = {
    "background": 0,
    "liver": 1,
    "spleen": 2,
    "left_kidney": 3,
    "right_kidney": 4,
    "stomach": 5,
    "spine": 6,
    "bladder": 7,
}
UNLABELLED = 0
CENTER_MM = 1e-6  # closer to a body's centre than this, the ray to the surface has no direction
EDGE_MM = 0.8  # half-width of the intensity ramp across a border, about a third of a voxel, as partial volume gives
LANDMARK_DEPTH = 0.6  # landmarks sit at this fraction of the way from an organ's centre to its surface
TEXTURE_WAVELENGTHS_MM = (9.0, 13.0, 17.0, 23.0, 31.0)
TEXTURE_SEED = 20  # the texture belongs to the atlas, and is the same in every dataset


@dataclass(frozen=True)
class Superellipsoid:
    """The body |x/a|ⁿ + |y/b|ⁿ + |z/c|ⁿ ≤ 1 in rotated axes.

    Attributes:
        center: Centre in RAS mm.
        radii: a, b, c in mm.
        exponent: n; 2 is an ellipsoid, larger is boxier.
        angles: Rotation about the x, y and z axis, in this order, in degrees.
    """

    center: tuple[float, float, float]
    radii: tuple[float, float, float]
    exponent: float = 2.0
    angles: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Structure:
    """One tissue; later structures are painted over earlier ones.

    Attributes:
        name: Name of the tissue.
        intensity: Signal in [0, 1].
        parts: Bodies whose union is the tissue; the first is the main one.
        label: Label value, or `UNLABELLED`: then the label below stays.
        texture: Strength of the texture, relative to the signal.
    """

    name: str
    intensity: float
    parts: tuple[Superellipsoid, ...]
    label: int = UNLABELLED
    texture: float = 0.05


def _bowel() -> tuple[Superellipsoid, ...]:
    """Lay loops of bowel on a coil in the lower abdomen."""
    turns = np.linspace(0, 2.2 * 2 * np.pi, 15)
    return tuple(
        Superellipsoid(
            center=(float(26 * np.cos(t) - 2), float(10 + 13 * np.sin(t)), float(-12 - 1.4 * t)),
            radii=(8.5, 5.5, 5.0),
            angles=(0.0, float(15 * np.sin(3 * t)), float(np.rad2deg(t) + 90)),
        )
        for t in turns
    )


VERTEBRAE_Z = (-43.0, -26.0, -9.0, 8.0, 25.0, 42.0)

# Drawn by eye after fat-bright abdominal MR; sizes are those of a small child.
TISSUES = (
    Structure("fat", 0.92, (Superellipsoid((0, 0, 0), (58, 43, 66), 3.0),), texture=0.04),
    Structure("muscle", 0.36, (Superellipsoid((0, 0, 0), (53, 38, 62), 3.0),), texture=0.12),
    Structure("cavity", 0.70, (Superellipsoid((0, 5, 0), (48, 29, 58), 3.2),), texture=0.15),
    Structure(
        "lungs", 0.06, (Superellipsoid((23, 0, 44), (20, 24, 14), 2.4), Superellipsoid((-24, 1, 43), (19, 23, 14), 2.4))
    ),
    Structure("psoas", 0.34, (Superellipsoid((17, -20, -24), (7, 8, 26)), Superellipsoid((-17, -20, -24), (7, 8, 26)))),
    Structure("bowel", 0.30, _bowel(), texture=0.25),
    Structure(
        "stomach",
        0.22,
        (Superellipsoid((-21, 16, 20), (12, 11, 19), 2.2, (0, -28, 0)), Superellipsoid((-6, 19, 4), (13, 8, 8))),
        LABELS["stomach"],
        texture=0.30,
    ),
    Structure(
        "liver",
        0.56,
        (
            Superellipsoid((22, 3, 24), (25, 26, 21), 2.5, (0, 14, 8)),
            Superellipsoid((2, 15, 29), (18, 13, 10), 2.2, (0, -12, 0)),
        ),
        LABELS["liver"],
    ),
    Structure("gallbladder", 0.12, (Superellipsoid((17, 20, 9), (5, 8, 5), angles=(-25, 0, 0)),)),
    Structure(
        "spleen", 0.42, (Superellipsoid((-36, -9, 26), (9, 15, 17), 2.3, (0, 12, -20)),), LABELS["spleen"], texture=0.06
    ),
    Structure(
        "left_kidney", 0.50, (Superellipsoid((-30, -15, -5), (10, 9, 17), 2.2, (8, 12, 0)),), LABELS["left_kidney"]
    ),
    Structure(
        "right_kidney",
        0.50,
        (Superellipsoid((29, -16, -15), (10.5, 9.5, 16), 2.2, (8, -14, 0)),),
        LABELS["right_kidney"],
    ),
    Structure("left_pelvis", 0.24, (Superellipsoid((-28, -14, -5), (4.5, 4, 9.5), angles=(8, 12, 0)),)),
    Structure("right_pelvis", 0.24, (Superellipsoid((27, -15, -15), (5, 4, 9), angles=(8, -14, 0)),)),
    Structure("spine", 0.30, (Superellipsoid((0, -25, 0), (9.5, 8.5, 51), 4.0),), LABELS["spine"]),
    Structure("vertebrae", 0.64, tuple(Superellipsoid((0, -25, z), (9, 8, 6), 3.5) for z in VERTEBRAE_Z), texture=0.08),
    Structure("spinal_cord", 0.14, (Superellipsoid((0, -36, 0), (4, 3, 60), 3.0),)),
    Structure("bladder", 0.10, (Superellipsoid((1, 8, -43), (16, 12, 10), 2.3, (12, 0, 0)),), LABELS["bladder"]),
    Structure("aorta", 1.0, (Superellipsoid((-5, -12, 4), (3.6, 3.6, 50), 3.0, (2, -2, 0)),)),
    Structure("vena_cava", 0.96, (Superellipsoid((7, -12, 0), (4.4, 3.2, 52), 3.0, (0, 2, 0)),)),
    Structure(
        "liver_vessels",
        0.90,
        (
            Superellipsoid((20, 4, 22), (16, 2.2, 2.2), 2.5, (0, 18, 14)),
            Superellipsoid((26, 10, 28), (2.0, 13, 2.0), 2.5, (20, 0, -20)),
            Superellipsoid((28, -6, 24), (2.0, 11, 2.0), 2.5, (-18, 0, 24)),
            Superellipsoid((22, 0, 33), (2.0, 2.0, 9), 2.5, (12, -30, 0)),
        ),
    ),
    Structure("spleen_vein", 0.95, (Superellipsoid((-22, -8, 19), (15, 2.2, 2.2), 2.5, (0, 14, 8)),)),
)


def atlas_at(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Evaluate the atlas at points.

    Args:
        points: Points of the atlas, (N, 3) RAS mm.

    Returns:
        Signal, not negative and at most about 1.3, (N,) float64, with edges of half-width `EDGE_MM`; and label values,
        (N,) uint8, with sharp edges.
    """
    signal = np.zeros(len(points))
    labels = np.zeros(len(points), dtype=np.uint8)
    texture = _texture(points)
    for tissue in TISSUES:
        for part in tissue.parts:
            near, depth = _depth_mm(part, points)
            # A body's signal replaces what is below it; parts of one tissue overlap seamlessly.
            opacity = np.clip(0.5 + 0.5 * depth / EDGE_MM, 0, 1)
            value = tissue.intensity * (1 + tissue.texture * texture[near])
            signal[near] += opacity * (value - signal[near])
            if tissue.label != UNLABELLED:
                labels[near[depth > 0]] = tissue.label
    return np.maximum(signal, 0), labels


def landmarks() -> tuple[tuple[str, ...], np.ndarray]:
    """Name points inside the organs: the centre, and two points near the ends of the longest axis, of each.

    Returns:
        Names, N of them, and points of the atlas, (N, 3) RAS mm.
    """
    named = [entry for tissue in TISSUES if tissue.label != UNLABELLED for entry in _organ_landmarks(tissue)]
    return tuple(name for name, _ in named), np.array([point for _, point in named])


def _organ_landmarks(organ: Structure) -> Iterator[tuple[str, np.ndarray]]:
    """Give the three landmarks of an organ's main part, with the name of the organ in theirs."""
    main = organ.parts[0]
    axis = int(np.argmax(main.radii))
    reach = LANDMARK_DEPTH * main.radii[axis] * _rotation(main)[:, axis]
    center = np.array(main.center)
    yield f"{organ.name}_center", center
    yield f"{organ.name}_end_1", center + reach
    yield f"{organ.name}_end_2", center - reach


def _rotation(part: Superellipsoid) -> np.ndarray:
    """Give the part's own axes as the columns of a (3, 3) rotation."""
    return Rotation.from_euler("xyz", part.angles, degrees=True).as_matrix()


def _depth_mm(part: Superellipsoid, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the indices of the points near a part, and how deep they are inside it, in mm (negative: outside).

    The depth is measured along the ray from the centre, |d| (1/r − 1) with r = (Σ |d_a / radius_a|ⁿ)^(1/n). Bodies
    with a large exponent reach beyond their radii, by at most √3.
    """
    offsets = points - np.array(part.center)
    reach = np.sqrt(3) * max(part.radii) + EDGE_MM
    near = np.flatnonzero(np.einsum("na,na->n", offsets, offsets) < reach**2)
    local = offsets[near] @ _rotation(part)
    radius = (np.abs(local / np.array(part.radii)) ** part.exponent).sum(axis=1) ** (1 / part.exponent)
    distance = np.linalg.norm(local, axis=1)
    at_center = distance < CENTER_MM
    return near, np.where(at_center, min(part.radii), distance / np.where(at_center, 1, radius) - distance)


def _texture(points: np.ndarray) -> np.ndarray:
    """Evaluate a fixed sum of plane waves with variance 1 at `points` (N, 3)."""
    generator = np.random.default_rng(TEXTURE_SEED)
    total = np.zeros(len(points))
    for wavelength in TEXTURE_WAVELENGTHS_MM:
        directions = generator.standard_normal((3, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        phases = generator.uniform(0, 2 * np.pi, 3)
        total += np.sin(points @ directions.T * (2 * np.pi / wavelength) + phases).sum(axis=1)
    return total / np.sqrt(len(TEXTURE_WAVELENGTHS_MM) * 3 / 2)
