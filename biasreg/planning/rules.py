"""The rules of the data: each a pure function from facts to one decision and its reason."""

from collections.abc import Sequence
from typing import get_args

import numpy as np

from biasreg.core.dataset_json import Pairing
from biasreg.planning.decision import Decision
from biasreg.planning.fingerprint_records import GIVEN, ChannelStatistics, PairFingerprint, Triple
from biasreg.planning.foreground import common_modality
from biasreg.planning.plans import ChannelNormalization, Crop, PreAlignment, Similarity

# A pre-alignment is taken when it raises the score (Dice or correlation) by this much over the simpler one.
ALIGNMENT_GAIN = 0.02
DISPLACEMENT_PERCENTILE = 75.0  # over pairs: one failed alignment in eight does not count
# Of the anatomy's mean side: what is assumed to be left where nothing could be measured, and the most to plan for.
UNKNOWN_DISPLACEMENT = 0.1
LARGEST_DISPLACEMENT = 0.25
# Below this part of the anatomy's box the labelled part gets a grid of its own, at least 2^(1/3) times as fine.
CROPPED_PART = 0.5
_ALIGNED = {
    "inter-subject": "pairs, registrations leading through the reference case",
    "intra-subject": "pairs within subjects; no affine map within a subject",
    "listed": "listed pairs",
}


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


def choose_prealignment(pairs: Sequence[PairFingerprint], pairing: Pairing) -> Decision[PreAlignment]:
    """Choose the pre-alignment by what it gains on the sample.

    Args:
        pairs: Facts about the sample.
        pairing: Pairing of the dataset. Images of one subject share their scanner's world and shape, so that they get
            no affine map, and are centred only if that clearly helps: the headers then share no world after all.

    Returns:
        `none`, `center`, `rigid`, `affine`, or `affine_focus`, which fits what labels show: the simplest that no other
        beats by 0.02.
    """
    within = pairing == "intra-subject"
    if not pairs:
        why = "no sample to measure on" + ("; images of one subject share the scanner's world" if within else "")
        return Decision("none" if within else "center", why)
    candidates: tuple[PreAlignment, ...] = ("none", "center") if within else get_args(PreAlignment)
    known = [name for name in candidates if all(name in pair.alignments for pair in pairs)]
    means = {name: float(np.mean([pair.alignments[name].score for pair in pairs])) for name in known}
    enough = max(means.values()) - ALIGNMENT_GAIN
    chosen = next(name for name in known if means[name] >= enough)
    listed = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
    return Decision(chosen, f"mean score of {len(pairs)} {_ALIGNED[pairing]}: {listed}")


def choose_displacement(
    pairs: Sequence[PairFingerprint], prealignment: PreAlignment, extents_mm: Sequence[Triple]
) -> Decision[float]:
    """Choose the displacement that the network must find and the grid must hold: what pre-alignment leaves.

    Args:
        pairs: Facts about the sample.
        prealignment: The pre-alignment that was chosen.
        extents_mm: Extent of each case along x, y, z.

    Returns:
        mm: the upper quartile, over the sample's pairs, of the larger of the distances that 95 % of their label
        surfaces and of their label centroids keep; without labels a tenth of the anatomy's mean side, and never more
        than a quarter of it, for failed alignments must not dictate the grid.
    """
    side = float(np.median(np.array(extents_mm).mean(axis=1)))
    # Where the user's own transforms align a pair, they decide what is left.
    ways = [GIVEN if GIVEN in pair.alignments else prealignment for pair in pairs]
    left = [pair.alignments[way] for pair, way in zip(pairs, ways, strict=True) if way in pair.alignments]
    distances = [
        max(found.surface_mm[1], found.centroid_mm[1]) for found in left if found.surface_mm and found.centroid_mm
    ]
    if not distances:
        return Decision(
            float(f"{UNKNOWN_DISPLACEMENT * side:.4g}"),
            f"unknown without labels: {100 * UNKNOWN_DISPLACEMENT:.0f} % of the anatomy's mean side of {side:.3g} mm",
        )
    found = float(np.percentile(distances, DISPLACEMENT_PERCENTILE))
    why = f"95 % of label surfaces and centroids keep {found:.3g} mm (upper quartile of {len(distances)} sampled pairs)"
    most = LARGEST_DISPLACEMENT * side
    if found > most:
        return Decision(float(f"{most:.4g}"), f"{why}, more than is planned for: a quarter of the anatomy's mean side")
    return Decision(float(f"{found:.4g}"), why)


def choose_crop(
    anatomy_mm: Sequence[Triple], labels_mm: Sequence[Triple | None], prealignment: PreAlignment
) -> Decision[Crop]:
    """Choose what the grid covers: the whole anatomy, or only what the labels show.

    Where labels show a small part of a body, as organs of the head in a scan down to the shoulders, a grid over the
    whole spends its voxels on what nobody asked for. That needs images whose labelled part is found without labels,
    which is what `affine_focus` does.

    Args:
        anatomy_mm: Extent of each case's foreground.
        labels_mm: Extent of each case's labels; None where there are none.
        prealignment: The pre-alignment that was chosen.

    Returns:
        `labels` or `anatomy`.
    """
    known = [extent for extent in labels_mm if extent is not None]
    if prealignment != "affine_focus" or not known:
        return Decision("anatomy", "the whole anatomy that the images show")
    part = float(np.median(np.prod(known, axis=1)) / np.median(np.prod(anatomy_mm, axis=1)))
    if part > CROPPED_PART:
        return Decision("anatomy", f"labels span {100 * part:.0f} % of the anatomy's box: the whole anatomy")
    return Decision("labels", f"labels span {100 * part:.0f} % of the anatomy's box: the part that they show")


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
