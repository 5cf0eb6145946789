"""What training gives up, in this order, when a step does not fit the memory that there is."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from biasreg.planning.consistency import network_faults
from biasreg.planning.grid_rules import rounded_spacing
from biasreg.planning.plans import Configuration

# Narrower than this, Swin's heads (3, 6, …) have fewer than four channels and decoders cannot tell structures apart.
SMALLEST_FEATURE_SIZE = 12
SMALLEST_DECODER = 4
COARSENING = 1.25
MOST_COARSENINGS = 6


class Fallback(NamedTuple):
    """A configuration that needs less memory than the one before.

    Attributes:
        configuration: The configuration.
        step: What it gives up, in a few words.
    """

    configuration: Configuration
    step: str


def fallbacks(configuration: Configuration) -> Iterator[Fallback]:
    """List what to try when a configuration does not fit: each gives up one thing more than the one before.

    First further pairs per step, which cost nothing but smoothness of the gradient; then activations are recomputed,
    which costs a third more time; then channels, unless the encoder is pretrained; and last resolution, for what the
    grid does not show cannot be aligned.

    Args:
        configuration: What was planned.

    Yields:
        Ever smaller configurations, from the least to the most that is given up.
    """
    if configuration.training.batch_size > 1:
        configuration = replace(configuration, training=replace(configuration.training, batch_size=1))
        yield Fallback(configuration, "one pair per step")
    if not configuration.network.checkpointing:
        configuration = replace(configuration, network=replace(configuration.network, checkpointing=True))
        yield Fallback(configuration, "activations are recomputed (checkpointing)")
    while (narrower := _narrower(configuration)) is not None:
        configuration = narrower
        width = configuration.network.encoder.feature_size
        yield Fallback(configuration, f"half as many channels (encoder {width})")
    widest = configuration
    for count in range(1, MOST_COARSENINGS + 1):
        before, configuration = configuration, _coarser(widest, COARSENING**count)
        if configuration.preprocessing.patch_size == before.preprocessing.patch_size:
            continue  # padding has taken up what was saved
        spacing = "×".join(f"{side:.4g}" for side in configuration.preprocessing.spacing)
        yield Fallback(configuration, f"voxels of {spacing} mm")


def _narrower(configuration: Configuration) -> Configuration | None:
    network = configuration.network
    if network.encoder.init != "scratch":
        return None  # pretrained weights have the width that they have
    feature_size = network.encoder.feature_size // 2
    channels = tuple(width // 2 for width in network.decoder_channels)
    if feature_size < SMALLEST_FEATURE_SIZE or min(channels) < SMALLEST_DECODER:
        return None
    encoder = replace(network.encoder, feature_size=feature_size)
    narrower = replace(network, encoder=encoder, decoder_channels=channels)
    return None if network_faults(narrower) else replace(configuration, network=narrower)


def _coarser(configuration: Configuration, factor: float) -> Configuration:
    """Cover the same field of view by larger voxels; sides stay multiples of the network's divisor."""
    preprocessing = configuration.preprocessing
    extent = np.array(preprocessing.patch_size) * preprocessing.spacing
    a, b, c = rounded_spacing([factor * side for side in preprocessing.spacing])
    divisor = np.array(configuration.network.divisor)
    x, y, z = (int(side) for side in np.ceil(extent / (a, b, c) / divisor - 1e-6) * divisor)
    return replace(configuration, preprocessing=replace(preprocessing, spacing=(a, b, c), patch_size=(x, y, z)))
