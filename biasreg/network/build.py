"""The only place of the network that reads plans: from `NetworkPlans` to a `BIASNet`."""

from torch import nn

from biasreg.core.errors import PlansError
from biasreg.network.biasnet import BIASNet
from biasreg.network.dual_decoder import Decoder, DualDecoder
from biasreg.network.encoder import ResidualEncoder, SwinEncoder, encoder_channels
from biasreg.network.mac import MAC, Concatenation, Enhancement
from biasreg.network.progressive import ProgressiveRegistration, RegistrationLevel
from biasreg.planning.plans import EncoderPlans, NetworkPlans

MOST_STAGES = 4  # of VoCo's encoder


def build_network(plans: NetworkPlans) -> BIASNet:
    """Build the network that the plans describe, with new weights from torch's global generator.

    Args:
        plans: Shape of the network.

    Returns:
        The network, on the CPU, in training mode.

    Raises:
        PlansError: When the plans contradict themselves; the message lists every contradiction.
    """
    faults = _faults(plans)
    if faults:
        raise PlansError("the network's plans contradict themselves: " + "; ".join(faults) + ". Plan again.")
    return BIASNet(
        encoder=build_encoder(plans.encoder, plans.in_channels, checkpointing=plans.checkpointing),
        decoder=_dual_decoder(plans),
        enhancement=_enhancement(plans),
        registration=_registration(plans),
        divisor=plans.divisor,
    )


def build_encoder(plans: EncoderPlans, in_channels: int, *, checkpointing: bool = False) -> nn.Module:
    """Build the encoder that the plans describe.

    Args:
        plans: Shape of the encoder.
        in_channels: Image channels.
        checkpointing: Recompute activations in the backward pass to save memory.

    Returns:
        A module that turns images (B, in_channels, X, Y, Z) into `len(plans.depths) + 2` feature maps, finest first.
    """
    if plans.family == "residual":
        return ResidualEncoder(in_channels, plans.feature_size, plans.depths, checkpointing)
    return SwinEncoder(in_channels, plans.feature_size, plans.depths, plans.heads, plans.window_size, checkpointing)


def _dual_decoder(plans: NetworkPlans) -> DualDecoder:
    channels = encoder_channels(plans.encoder.feature_size, len(plans.encoder.depths))

    def decoder() -> Decoder:
        return Decoder(channels, plans.decoder_channels, biaf=plans.biaf, checkpointing=plans.checkpointing)

    return DualDecoder(
        semantic=decoder() if plans.streams != "intensity" else None,
        intensity=decoder() if plans.streams != "semantic" else None,
        segmentation_level=plans.segmentation_level,
        segmentation_channels=plans.decoder_channels[plans.segmentation_level],
        num_labels=plans.num_labels,
    )


def _enhancement(plans: NetworkPlans) -> Enhancement:
    channels = plans.decoder_channels[: plans.registration_levels] if plans.streams == "both" else ()
    levels: list[nn.Module] = []
    for level, width in enumerate(channels):
        levels.append(MAC(width, feed_forward=level > 0) if plans.mac else Concatenation(width))
    return Enhancement(levels, plans.checkpointing)


def _registration(plans: NetworkPlans) -> ProgressiveRegistration:
    channels = plans.decoder_channels[: plans.registration_levels]
    levels = [
        RegistrationLevel(
            width,
            coarser_width,
            integration_steps=plans.integration_steps,
            correlation=level in plans.correlation_levels,
            unit=2.0**-level,  # one voxel of the finest grid
        )
        for level, (width, coarser_width) in enumerate(zip(channels, (*channels[1:], 0), strict=True))
    ]
    return ProgressiveRegistration(levels, plans.checkpointing)


def _faults(plans: NetworkPlans) -> list[str]:
    faults = _encoder_faults(plans.encoder)
    maps = len(plans.encoder.depths) + 2
    if len(plans.decoder_channels) != maps:
        faults.append(
            f"decoder_channels has {len(plans.decoder_channels)} entries, but the encoder gives {maps} feature maps"
        )
    if not 1 <= plans.registration_levels <= maps:
        faults.append(f"registration_levels is {plans.registration_levels}, but must be in 1 … {maps}")
    if not 0 <= plans.segmentation_level < maps:
        faults.append(f"segmentation_level is {plans.segmentation_level}, but must be in 0 … {maps - 1}")
    if any(not 0 <= level < plans.registration_levels for level in plans.correlation_levels):
        faults.append(
            f"correlation_levels is {plans.correlation_levels}, but there are {plans.registration_levels} levels"
        )
    if plans.num_labels < 1 or plans.in_channels < 1 or plans.integration_steps < 0:
        faults.append(
            f"num_labels {plans.num_labels} and in_channels {plans.in_channels} must be at least 1, "
            f"integration_steps {plans.integration_steps} at least 0"
        )
    return faults


def _encoder_faults(plans: EncoderPlans) -> list[str]:
    if not 1 <= len(plans.depths) <= MOST_STAGES or min(plans.depths) < 1:
        return [f"encoder.depths is {plans.depths}, but must be 1 … {MOST_STAGES} numbers of at least 1"]
    if plans.family != "swin":
        return []
    faults = []
    if len(plans.heads) != len(plans.depths):
        faults.append(f"encoder.heads has {len(plans.heads)} entries, but encoder.depths {len(plans.depths)}")
    for stage, heads in enumerate(plans.heads):
        if heads < 1 or plans.feature_size * 2**stage % heads:
            faults.append(
                f"encoder.heads[{stage}] is {heads}, which does not divide {plans.feature_size * 2**stage} channels"
            )
    if plans.window_size < 1:
        faults.append(f"encoder.window_size is {plans.window_size}, but must be at least 1")
    return faults
