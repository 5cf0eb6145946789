"""Several networks and several views of a pair, one field."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from biasreg.network.biasnet import BIASNet
from biasreg.network.device import autocast
from biasreg.spatial.displacement import resize


@dataclass(frozen=True)
class Views:
    """What the networks are shown, and what is kept of their answers besides the field.

    Attributes:
        mirror_axes: Axes out of 0, 1, 2 along which both images are mirrored, in all combinations.
        levels: Keep the field after each level of progressive registration.
        covariance: Keep how the members' displacements scatter.
        one_at_a_time: A network leaves the device again after its turn.
    """

    mirror_axes: tuple[int, ...] = ()
    levels: bool = False
    covariance: bool = False
    one_at_a_time: bool = False

    @property
    def mirrorings(self) -> list[tuple[int, ...]]:
        """All subsets of the axes, none of them first."""
        counts = range(len(self.mirror_axes) + 1)
        return [axes for count in counts for axes in itertools.combinations(self.mirror_axes, count)]


@dataclass(frozen=True)
class Ensemble:
    """What the members say about a pair; a member is one network that sees the pair mirrored in one way.

    Attributes:
        displacement: (1, 3, X, Y, Z) float32 in voxels, the mean.
        covariance: (3, 3, X, Y, Z) in voxels², of the members' displacements; None if not kept, or of one member alone.
        levels: Mean field after each level, finest first, each (1, 3, X, Y, Z) in voxels of the finest; () if not kept.
        semantics: Mean probabilities of the foreground labels in moving and fixed image, each (1, K, X', Y', Z') on the
            grid of the segmentation heads, over the unmirrored views; None where the networks segment nothing.
    """

    displacement: Tensor
    covariance: Tensor | None = None
    levels: tuple[Tensor, ...] = ()
    semantics: tuple[Tensor, Tensor] | None = None


@torch.no_grad()
def ensemble(networks: Sequence[BIASNet], moving: Tensor, fixed: Tensor, views: Views) -> Ensemble:
    """Average what the members say.

    A field that was found between mirrored images is mirrored back, and its component along each mirrored axis changes
    its sign.

    Args:
        networks: At least one network, in evaluation mode; each is brought to the images' device.
        moving: (1, C, X, Y, Z) in [0, 1].
        fixed: (1, C, X, Y, Z) in [0, 1].
        views: What they are shown, and what is kept.

    Returns:
        The mean, and how far the members lie apart.
    """
    answers = _answers(networks, moving, fixed, views)
    levels, semantics = next(answers)
    first, count = levels[0], 1  # differences from it are small, so that their products are precise
    products = torch.zeros_like(_products(first)) if views.covariance else None
    for more_levels, more_semantics in answers:
        if products is not None:
            products += _products(more_levels[0] - first)
        levels = [total + level for total, level in zip(levels, more_levels, strict=True)]
        if more_semantics:
            semantics = [total + part for total, part in zip(semantics, more_semantics, strict=True)]
        count += 1
    levels = [level / count for level in levels]
    semantics = [part / len(networks) for part in semantics]
    return Ensemble(
        displacement=levels[0],
        covariance=None if products is None or count == 1 else products / count - _products(levels[0] - first),
        levels=tuple(levels) if views.levels else (),
        semantics=(semantics[0], semantics[1]) if semantics else None,
    )


def _answers(
    networks: Sequence[BIASNet], moving: Tensor, fixed: Tensor, views: Views
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Yield each member's fields, finest first, as if nothing were mirrored; of the unmirrored, probabilities too."""
    for network in networks:
        network.to(fixed.device)
        for axes in views.mirrorings:
            mirrored = [axis + 2 for axis in axes]
            with autocast(fixed.device):
                output = network(moving.flip(mirrored), fixed.flip(mirrored))
            fields = output.fields if views.levels else (output.displacement,)
            # In a mirrored image the left kidney looks like the right one: its segmentation would not count.
            logits = [output.moving_logits, output.fixed_logits] if not axes else []
            yield (
                [mirror_field(resize(field.float(), fixed.shape[2:]), axes) for field in fields],
                [each.float().softmax(dim=1)[:, 1:] for each in logits if each is not None],
            )
        if views.one_at_a_time:
            network.to("cpu")


def _products(displacement: Tensor) -> Tensor:
    """Multiply each component with each: (1, 3, X, Y, Z) to (3, 3, X, Y, Z)."""
    return displacement[0, :, None] * displacement[0, None]


def mirror_field(displacement: Tensor, axes: Sequence[int]) -> Tensor:
    """Mirror a displacement along axes: its values change places, and its components along these axes their sign.

    Args:
        displacement: (B, 3, X, Y, Z).
        axes: Out of 0, 1, 2.

    Returns:
        The same shape; mirroring twice gives the displacement back.
    """
    signs = displacement.new_tensor([-1.0 if axis in axes else 1.0 for axis in range(3)])
    return displacement.flip([axis + 2 for axis in axes]) * signs.view(1, 3, 1, 1, 1)
