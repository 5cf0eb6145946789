"""Whether plans contradict themselves: what a user has changed by hand is checked where it is read."""

from biasreg.core.errors import PlansError
from biasreg.planning.network_rules import MOST_STAGES
from biasreg.planning.plans import Configuration, EncoderPlans, NetworkPlans


def check_configuration(name: str, configuration: Configuration) -> None:
    """Refuse a configuration whose parts do not fit each other.

    Args:
        name: Its name, for the message.
        configuration: The configuration.

    Raises:
        PlansError: With every contradiction.
    """
    preprocessing, network, training = configuration.preprocessing, configuration.network, configuration.training
    faults = network_faults(network)
    if not faults and any(side % step for side, step in zip(preprocessing.patch_size, network.divisor, strict=True)):
        faults.append(f"patch_size {preprocessing.patch_size} is no multiple of the network's {network.divisor}")
    if min(preprocessing.patch_size) < 1 or min(preprocessing.spacing) <= 0:
        faults.append(f"patch_size {preprocessing.patch_size} and spacing {preprocessing.spacing} must be above 0")
    if len(preprocessing.normalization) != network.in_channels:
        faults.append(f"{len(preprocessing.normalization)} normalizations for {network.in_channels} channels")
    if network.num_labels not in (1, len(preprocessing.label_values) + 1):
        faults.append(f"num_labels is {network.num_labels}, but there are {len(preprocessing.label_values)} labels")
    counts = {"epochs": training.epochs, "iterations_per_epoch": training.iterations_per_epoch}
    counts |= {"batch_size": training.batch_size, "labels_per_step": training.labels_per_step}
    faults += [f"{field} is {value}, but must be at least 1" for field, value in counts.items() if value < 1]
    if training.similarity_window_voxels % 2 == 0:
        faults.append(f"similarity_window_voxels is {training.similarity_window_voxels}, but must be odd")
    if faults:
        raise PlansError(f"configuration {name} contradicts itself: " + "; ".join(faults))


def network_faults(plans: NetworkPlans) -> list[str]:
    """Find what contradicts itself in the shape of a network.

    Args:
        plans: Shape of the network.

    Returns:
        One line for each contradiction.
    """
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
    faults = []
    factors = {factor for step in plans.strides for factor in step}
    if len(plans.strides) != len(plans.depths) + 1 or not factors <= {1, 2}:
        faults.append(f"encoder.strides is {plans.strides}, but must be {len(plans.depths) + 1} triples of 1 and 2")
    return faults + (_swin_faults(plans) if plans.family == "swin" else [])


def _swin_faults(plans: EncoderPlans) -> list[str]:
    faults = []
    if any(step != (2, 2, 2) for step in plans.strides):
        faults.append(f"encoder.strides is {plans.strides}, but a Swin encoder halves all axes at each stage")
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
