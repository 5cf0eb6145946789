"""The rules but for those of the grid: each a pure function from facts to one decision and its reason."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from biasreg.core.dataset_json import Pairing
from biasreg.planning.decision import Decision
from biasreg.planning.fingerprint import AlignmentScores, ChannelStatistics
from biasreg.planning.foreground import common_modality
from biasreg.planning.plans import ChannelNormalization, EncoderPlans, PreAlignment, Similarity

PAPER_LEVELS = 4
# A pre-alignment is taken when it raises the score (Dice or correlation) by this much over the simpler one.
ALIGNMENT_GAIN = 0.02
MANY_LABELS = 8
_ALIGNED = {
    "inter-subject": "cases against the reference case",
    "intra-subject": "pairs within subjects; no affine map within a subject",
    "listed": "listed pairs",
}


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


def choose_prealignment(scores: Sequence[AlignmentScores], pairing: Pairing) -> Decision[PreAlignment]:
    """Choose the pre-alignment by what it gains on the sample.

    Args:
        scores: Scores of the sample.
        pairing: Pairing of the dataset. Images of one subject share their scanner's world and shape, so that they get
            no affine map, and are centred only if that clearly helps: the headers then share no world after all.

    Returns:
        `none`, `center`, `affine`, or `affine_focus`, which refines the affine map for the labelled part of the
        anatomy: the simplest that no other beats by 0.02.
    """
    within = pairing == "intra-subject"
    if not scores:
        why = "no sample to measure on" + ("; images of one subject share the scanner's world" if within else "")
        return Decision("none" if within else "center", why)
    measured: dict[PreAlignment, list[float | None]] = {
        "none": [score.none for score in scores],
        "center": [score.center for score in scores],
        "affine": [None if within else score.affine for score in scores],
        "affine_focus": [None if within else score.focus for score in scores],
    }
    means = {name: float(np.mean(known)) for name, values in measured.items() if (known := _all_known(values))}
    chosen: PreAlignment = "none"
    for candidate, mean in means.items():
        if mean > means[chosen] + ALIGNMENT_GAIN:
            chosen = candidate
    listed = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
    return Decision(chosen, f"mean score of {len(scores)} {_ALIGNED[pairing]}: {listed}")


def choose_modality(modalities: Sequence[str]) -> Decision[str]:
    """Choose the modality that foreground detection and normalisation assume.

    Args:
        modalities: Modality of each case.

    Returns:
        The common modality, or `mixed`.
    """
    common = common_modality(modalities)
    if common in modalities:
        return Decision(common, "all cases have it")
    kinds = ", ".join(sorted(set(modalities)))
    return Decision(common, f"cases of {kinds}: no physical intensity scale is assumed")


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


def choose_integration(pairing: Pairing) -> Decision[int]:
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


def _all_known(values: Sequence[float | None]) -> list[float]:
    """Give the values if none is missing, else none."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else []
