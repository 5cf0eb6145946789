"""The only place of the network that reads plans: from `NetworkPlans` to a `BIASNet`."""

from torch import nn

from biasreg.core.errors import PlansError
from biasreg.network.biasnet import BIASNet
from biasreg.network.dual_decoder import Decoder, DualDecoder
from biasreg.network.encoder import ResidualEncoder, SwinEncoder, encoder_channels
from biasreg.network.lora import add_lora
from biasreg.network.mac import MAC, Concatenation, Enhancement
from biasreg.network.progressive import ProgressiveRegistration, RegistrationLevel
from biasreg.planning.consistency import network_faults
from biasreg.planning.plans import EncoderPlans, NetworkPlans


def build_network(plans: NetworkPlans) -> BIASNet:
    """Build the network that the plans describe, with new weights from torch's global generator.

    That goes for a pretrained encoder too: `pretrained.load_base` loads its weights.

    Args:
        plans: Shape of the network.

    Returns:
        The network, on the CPU, in training mode.

    Raises:
        PlansError: When the plans contradict themselves; the message lists every contradiction.
    """
    faults = network_faults(plans)
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
        What does not train is frozen.
    """
    encoder: nn.Module
    if plans.family == "residual":
        encoder = ResidualEncoder(in_channels, plans.feature_size, plans.depths, plans.strides, checkpointing)
    else:
        swin = (plans.feature_size, plans.depths, plans.heads, plans.window_size)
        encoder = SwinEncoder(in_channels, *swin, checkpointing)
    if plans.tuning == "frozen":
        encoder.requires_grad_(False)
    if plans.lora is not None:
        add_lora(encoder, plans.lora.rank, plans.lora.alpha, mlp=plans.lora.mlp)
    return encoder


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
            unit=tuple(1.0 / factor for factor in plans.encoder.factors(level)),  # one voxel of the finest grid
        )
        for level, (width, coarser_width) in enumerate(zip(channels, (*channels[1:], 0), strict=True))
    ]
    return ProgressiveRegistration(levels, plans.checkpointing)
