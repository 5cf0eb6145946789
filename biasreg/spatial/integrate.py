"""From a stationary velocity field to its displacement."""

from torch import Tensor

from biasreg.spatial.displacement import compose
from biasreg.spatial.guards import at_least_float32, require_field


def integrate_velocity(velocity: Tensor, steps: int) -> Tensor:
    """Integrate a stationary velocity over unit time by scaling and squaring.

    u_0 = v / 2^N,  u_{n+1} = u_n ∘ u_n,  exp(v) = id + u_N.

    Args:
        velocity: v, (B, 3, X, Y, Z) in voxels per unit time.
        steps: N, the number of squarings, at least 0. With 0 the velocity itself is the displacement.

    Returns:
        The displacement (B, 3, X, Y, Z) in voxels, float32 (float64 for a float64 velocity).

    Raises:
        ValueError: On a wrong shape or a negative number of steps.

    Source:
        Arsigny, Commowick, Pennec, Ayache: A log-Euclidean framework for statistics on diffeomorphisms, MICCAI 2006,
        doi:10.1007/11866565_113.
    """
    require_field(velocity, "velocity")
    if steps < 0:
        raise ValueError(f"the number of integration steps is {steps}; it must be 0 or more")
    displacement = at_least_float32(velocity) / 2**steps
    for _ in range(steps):
        displacement = compose(displacement, displacement)
    return displacement
