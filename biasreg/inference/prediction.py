"""The records of a registered pair in memory."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from biasreg.core.geometry import Geometry
from biasreg.inference.trust import Trust


@dataclass(frozen=True)
class InverseError:
    """How far from its start a point lands after going through the inverse and back, in mm.

    Measured on the fields as they are written, over the voxels of the moving grid that land inside the fixed grid.

    Attributes:
        mean_mm: Mean.
        percentile95_mm: 95th percentile.
        max_mm: Largest.
    """

    mean_mm: float
    percentile95_mm: float
    max_mm: float


@dataclass(frozen=True)
class FieldQuality:
    """How regular a transform is, on the fixed image's grid.

    Attributes:
        folding_percent: Share of the voxels where the transform folds, 0 to 100.
        log_jacobian_std: Standard deviation of log det J where det J is positive; None where that is nowhere.
        inverse_error: How well the two fields undo each other; None if no moving voxel lands inside the fixed grid.
    """

    folding_percent: float
    log_jacobian_std: float | None
    inverse_error: InverseError | None


@dataclass(frozen=True)
class Prediction:
    """A registered pair.

    Attributes:
        fixed: The fixed grid.
        moving: The moving grid.
        displacement: (X, Y, Z, 3) RAS mm on the fixed grid: fixed point p is found at p + d(p) in the moving image;
            rounded to a thousandth of a voxel.
        inverse: (X', Y', Z', 3) RAS mm on the moving grid: moving point q is found at q + d(q) in the fixed image.
        warped: The moving image on the fixed grid, float32 (X, Y, Z) per channel.
        quality: How regular the field is, and how well it is undone by its inverse.
        trust: Whether to rely on it, and why not.
        refined_mm: Voxel size of the finest canonical grid that the field was refined on; None if it was not.
        uncertainty: (X, Y, Z) mm on the fixed grid: root mean square distance of the members of the ensemble from their
            mean, before refinement; None if not asked for.
        levels: What comes before `displacement`, each like it: the displacement after each coarser level of progressive
            registration, by level (1 is the second finest), and where it was refined, that of the finest (0). Empty if
            not asked for.
        features: Principal components of the network's features by name, see `features.py`; empty if not asked for.
        seconds: Wall time per stage.
        notices: What a user should know about this pair.
    """

    fixed: Geometry
    moving: Geometry
    displacement: NDArray[np.float32]
    inverse: NDArray[np.float32]
    warped: tuple[NDArray[np.float32], ...]
    quality: FieldQuality
    trust: Trust
    refined_mm: tuple[float, float, float] | None = None
    uncertainty: NDArray[np.float32] | None = None
    levels: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    features: dict[str, NDArray[np.float16]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
