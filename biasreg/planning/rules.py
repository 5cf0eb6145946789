"""The rules: each a pure function from facts to one decision and its reason."""

from collections.abc import Sequence
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np

from biasreg.core.geometry import Geometry
from biasreg.planning.fingerprint import AlignmentScores, ChannelStatistics
from biasreg.planning.plans import ChannelNormalization, EncoderPlans, PreAlignment, Similarity

T = TypeVar("T")
Triple = tuple[float, float, float]
Shape = tuple[int, int, int]

ANISOTROPY_THRESHOLD = 3.0  # nnU-Net's
COARSENING_STEP = 1.02
EXTENT_PERCENTILE = 95.0
# The largest residual displacement expected after pre-alignment, as a fraction of the anatomy's extent: room for the
# moving anatomy at each side of the grid.
MARGIN_FRACTION = 0.04
# The deepest features must still tell left from right and top from bottom.
SMALLEST_DEEPEST_SIDE = 3
PAPER_LEVELS = 4
# A pre-alignment is taken when it raises the score (Dice or correlation) by this much over the simpler one.
ALIGNMENT_GAIN = 0.02
MANY_LABELS = 8


class Decision(NamedTuple, Generic[T]):
    """A decision and the reason for it."""

    value: T
    why: str


class DevicePreset(NamedTuple):
    """What a class of devices can train.

    Attributes:
        feature_size: Width of the encoder.
        blocks: Blocks per encoder stage.
        window_size: Side of the attention window in tokens.
        decoder_channels: Channels of the decoders, finest first.
        max_stages: Largest number of encoder stages.
        epochs: Epochs of the recipe.
        iterations_per_epoch: Steps per epoch.
        learning_rate: Start of the learning rate's decay.
        labels_per_step: Labels in the overlap term of one step.
    """

    feature_size: int
    blocks: int
    window_size: int
    decoder_channels: tuple[int, ...]
    max_stages: int
    epochs: int
    iterations_per_epoch: int
    learning_rate: float
    labels_per_step: int


# Windows of 4 instead of 7 tokens halve the time of a step on a CPU.
CPU_PRESET = DevicePreset(12, 1, 4, (8, 16, 16, 32, 32, 64), 3, 100, 50, 1e-3, 8)
GPU_PRESET = DevicePreset(48, 2, 7, (16, 32, 64, 128, 128, 256), 4, 400, 250, 1e-4, 16)


def device_preset(device: Literal["cpu", "cuda"]) -> Decision[DevicePreset]:
    """Choose the network's width and the length of training by the class of device.

    A Swin encoder of VoCo-B's width takes 24 CPU-seconds for one step at 64³, so that a CPU gets a narrow and shallow
    network; a GPU gets the paper's.

    Args:
        device: Device that will train.

    Returns:
        The preset.
    """
    if device == "cpu":
        return Decision(CPU_PRESET, "a CPU trains a narrow and shallow network, so that a step takes seconds")
    return Decision(GPU_PRESET, "the widths of VoCo-B and of the paper's decoders; 100,000 iterations")


def world_spacing(geometry: Geometry) -> Triple:
    """Find a grid's spacing along the world's axes.

    Args:
        geometry: The grid.

    Returns:
        Spacing in mm along x, y, z, each from the array axis that is closest to that world axis.
    """
    closest = np.abs(np.array(geometry.direction)).argmax(axis=1)
    x, y, z = (geometry.spacing[axis] for axis in closest)
    return x, y, z


def choose_field_of_view(extents_mm: Sequence[Triple]) -> Decision[Triple]:
    """Choose the field of view of the canonical grid: the 95th percentile of the anatomy's extents, plus a margin.

    Registration needs the whole field of view at once, unlike segmentation; the percentile keeps one odd case from
    dictating the grid of all others.

    Args:
        extents_mm: Foreground extent of each case along x, y, z in mm.

    Returns:
        Side lengths in mm.
    """
    base = np.percentile(np.array(extents_mm), EXTENT_PERCENTILE, axis=0)
    x, y, z = (float(side) for side in base * (1 + 2 * MARGIN_FRACTION))
    larger = sum(1 for extent in extents_mm if any(side > limit for side, limit in zip(extent, (x, y, z), strict=True)))
    why = (
        f"the 95th percentile of the anatomy's extent and {100 * MARGIN_FRACTION:.0f} % margin at each side; "
        f"{larger} of {len(extents_mm)} cases are larger"
    )
    return Decision((x, y, z), why)


def choose_spacing(
    spacings: Sequence[Triple], field_of_view_mm: Triple, divisor: int, budget_voxels: int
) -> Decision[Triple]:
    """Choose the voxel size: nnU-Net's median and anisotropy rule, then coarser until the field of view fits.

    The finest axis is coarsened first, so that voxels become isotropic before they become large. Never finer than the
    data.

    Args:
        spacings: Spacing of each case along x, y, z in mm.
        field_of_view_mm: Field of view that must fit.
        divisor: The grid's sides are padded to multiples of this.
        budget_voxels: Number of voxels that the device can train on.

    Returns:
        Spacing in mm along x, y, z.

    Source:
        Isensee et al. 2021 (doi:10.1038/s41592-020-01008-z) for the median and anisotropy rule.
    """
    data = np.array(spacings)
    spacing = np.median(data, axis=0)
    worst = int(spacing.argmax())
    why = "median spacing of the cases"
    if spacing[worst] / spacing.min() >= ANISOTROPY_THRESHOLD:
        finer = np.percentile(data[:, worst], 10)
        spacing[worst] = max(finer, np.delete(spacing, worst).max())
        why += f", the 10th percentile along the coarse axis {'xyz'[worst]}"
    started = spacing.copy()
    while np.prod(_padded_shape(field_of_view_mm, spacing, divisor)) > budget_voxels:
        finest = spacing <= spacing.min() * COARSENING_STEP
        spacing[finest] *= COARSENING_STEP
    if (spacing > started).any():
        why += f", coarsened from {_millimetres(started)} until the field of view fits {budget_voxels} voxels"
    x, y, z = (round(float(value), 4) for value in spacing)
    return Decision((x, y, z), why)


def choose_stages(field_of_view_mm: Triple, spacing: Triple, max_stages: int) -> Decision[int]:
    """Choose the number of encoder stages: as many as leave three voxels along each side of the deepest features.

    Args:
        field_of_view_mm: Side lengths of the grid in mm.
        spacing: Voxel size in mm.
        max_stages: Largest number for this device.

    Returns:
        Number of stages, at least 1.
    """
    smallest = min(side / step for side, step in zip(field_of_view_mm, spacing, strict=True))
    stages = int(np.floor(np.log2(max(smallest / SMALLEST_DEEPEST_SIDE, 4)))) - 1
    chosen = max(1, min(stages, max_stages))
    left = smallest / 2 ** (chosen + 1)
    why = f"the smallest side has {smallest:.0f} voxels, so that {chosen} stage(s) leave {left:.1f}"
    return Decision(chosen, why + (" (the device's limit)" if stages > max_stages else ""))


def choose_patch_size(field_of_view_mm: Triple, spacing: Triple, divisor: int) -> Decision[Shape]:
    """Choose the grid: the whole field of view, padded to a multiple of the network's divisor.

    Args:
        field_of_view_mm: Side lengths in mm.
        spacing: Voxel size in mm.
        divisor: Divisor of the network's input.

    Returns:
        Shape in voxels.
    """
    shape = _padded_shape(field_of_view_mm, np.array(spacing), divisor)
    return Decision(shape, f"the whole field of view, padded to multiples of {divisor}")


def choose_encoder(preset: DevicePreset, stages: int) -> Decision[EncoderPlans]:
    """Choose the encoder's shape.

    Args:
        preset: What the device can train.
        stages: Number of stages.

    Returns:
        The encoder's plans.
    """
    heads = tuple(3 * 2**stage for stage in range(stages))
    encoder = EncoderPlans("swin", "scratch", preset.feature_size, (preset.blocks,) * stages, heads, preset.window_size)
    return Decision(
        encoder, "VoCo's Swin encoder at the device's width, trained from scratch: no VoCo weights are used"
    )


def choose_normalization(modality: str, channels: Sequence[ChannelStatistics]) -> Decision[ChannelNormalization]:
    """Choose how a channel's intensities are scaled.

    CT has a physical scale, so that one range serves all images; other modalities have none, so that each image brings
    its own percentiles.

    Args:
        modality: Modality of the channel.
        channels: The channel's statistics in each case.

    Returns:
        The channel's normalisation.
    """
    if modality.upper() == "CT":
        low = float(np.median([channel.percentiles[0] for channel in channels]))
        high = float(np.median([channel.percentiles[-1] for channel in channels]))
        why = "CT: one window for all, the median of the cases' 0.5 and 99.5 percentiles inside the body"
        return Decision(ChannelNormalization("window", round(low, 2), round(high, 2)), why)
    why = f"{modality}: no physical scale, so that each image is scaled by its own 0.5 and 99.5 percentiles"
    return Decision(ChannelNormalization("percentile", 0.5, 99.5), why)


def choose_prealignment(scores: Sequence[AlignmentScores], pairing: str) -> Decision[PreAlignment]:
    """Choose the pre-alignment by what it gains on the sample.

    Args:
        scores: Scores of the sample.
        pairing: Pairing of the dataset; images of one subject keep their common world unless centring helps.

    Returns:
        `none`, `center` or `affine`: the simplest that no other beats by 0.02.
    """
    if pairing == "intra-subject":
        return Decision("none", "images of one subject share the scanner's world")
    if not scores:
        return Decision("center", "no sample to measure on")
    means = {
        "none": float(np.mean([score.none for score in scores])),
        "center": float(np.mean([score.center for score in scores])),
        "affine": float(np.mean([score.affine for score in scores])),
    }
    chosen: PreAlignment = "none"
    if means["center"] > means["none"] + ALIGNMENT_GAIN:
        chosen = "center"
    if means["affine"] > means[chosen] + ALIGNMENT_GAIN:
        chosen = "affine"
    measured = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
    return Decision(chosen, f"mean score of {len(scores)} cases against the reference case: {measured}")


def choose_modality(modalities: Sequence[str]) -> Decision[str]:
    """Choose the modality that foreground detection and normalisation assume.

    Args:
        modalities: Modality of each case.

    Returns:
        The common modality, or `mixed`.
    """
    kinds = sorted(set(modalities))
    if len(kinds) == 1:
        return Decision(kinds[0], "all cases have it")
    return Decision("mixed", f"cases of {', '.join(kinds)}: no physical intensity scale is assumed")


def choose_similarity(modalities: Sequence[str]) -> Decision[Similarity]:
    """Choose the similarity: local NCC within one modality, MIND-SSC across modalities.

    Args:
        modalities: Modality of each case.

    Returns:
        `lncc` or `mind`.
    """
    kinds = sorted(set(modalities))
    if len(kinds) > 1:
        return Decision("mind", f"the cases differ in modality ({', '.join(kinds)})")
    return Decision("lncc", f"all cases are {kinds[0]}")


def choose_integration(pairing: str) -> Decision[int]:
    """Choose whether the residual fields are integrated to diffeomorphisms.

    Args:
        pairing: Pairing of the dataset.

    Returns:
        Scaling-and-squaring steps: 7, or 0 within a subject, where organs may slide along each other.
    """
    if pairing == "intra-subject":
        return Decision(0, "within a subject organs may slide along each other")
    return Decision(7, "between subjects each structure has one counterpart: a diffeomorphic map")


def choose_correlation_levels(levels: int) -> Decision[tuple[int, ...]]:
    """Choose the levels that compare each fixed voxel with the 27 moving voxels around it: all.

    Without it a new network gives every pair the same small field, until its features have learnt to tell structures
    apart. On 12 pairs of a synthetic anatomy the mean Dice after 80 steps was 0.61 without (0.61 before training), 0.62
    with the volume at all levels but the finest, and 0.69 with it at all levels.

    Args:
        levels: Number of registration levels.

    Returns:
        The levels.
    """
    return Decision(tuple(range(levels)), "all levels: a new network then sees where structures match")


def choose_segmentation_level(num_labels: int) -> Decision[int]:
    """Choose the level whose features the segmentation head reads.

    Args:
        num_labels: Labels with background.

    Returns:
        0 for few labels; 1 when the class maps would dominate memory.
    """
    if num_labels <= MANY_LABELS:
        return Decision(0, f"{num_labels} classes fit at full resolution")
    return Decision(1, f"{num_labels} class maps at full resolution would dominate memory")


def registration_levels(stages: int) -> int:
    """Number of fields Φ: the paper's four, as far as the pyramid has that many levels."""
    return min(PAPER_LEVELS, stages + 2)


def _padded_shape(field_of_view_mm: Triple, spacing: np.ndarray, divisor: int) -> Shape:
    x, y, z = (int(count) * divisor for count in np.ceil(np.array(field_of_view_mm) / spacing / divisor - 1e-6))
    return x, y, z


def _millimetres(values: np.ndarray) -> str:
    return "×".join(f"{value:g}" for value in values.round(3)) + " mm"
