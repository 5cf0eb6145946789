"""Whether plans contradict themselves: what a user has changed by hand is checked where it is read."""

import re

from biasreg.core.errors import PlansError
from biasreg.planning.network_rules import MOST_STAGES
from biasreg.planning.plans import TO_REFERENCE, Configuration, EncoderPlans, NetworkPlans, TrainingPlans
from biasreg.planning.voco import VOCO_ENCODERS

CONFIGURATION_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


def check_configuration(name: str, configuration: Configuration) -> None:
    """Refuse a configuration whose parts do not fit each other.

    Args:
        name: Its name, for the message.
        configuration: The configuration.

    Raises:
        PlansError: With every contradiction.
    """
    network = network_faults(configuration.network)
    faults = [*network, *_preprocessing_faults(configuration), *_training_faults(configuration.training)]
    shape, divisor = configuration.preprocessing.patch_size, configuration.network.divisor
    if not network and any(side % step for side, step in zip(shape, divisor, strict=True)):
        faults.append(f"patch_size {shape} is no multiple of the network's {divisor}")
    if not CONFIGURATION_NAME.fullmatch(name):
        faults.append("its name names a folder: use letters, digits, '-', '_' and '.'")
    if faults:
        raise PlansError(
            f"configuration {name} contradicts itself: " + "; ".join(faults) + " · correct the plans, or plan again"
        )


def _preprocessing_faults(configuration: Configuration) -> list[str]:
    plans, network = configuration.preprocessing, configuration.network
    faults = []
    if min(plans.patch_size) < 1 or min(plans.spacing) <= 0:
        faults.append(f"patch_size {plans.patch_size} and spacing {plans.spacing} must be above 0")
    if len(plans.normalization) != network.in_channels:
        faults.append(f"{len(plans.normalization)} normalizations for {network.in_channels} channels")
    if network.num_labels not in (1, len(plans.label_values) + 1):
        faults.append(f"num_labels is {network.num_labels}, but there are {len(plans.label_values)} labels")
    if (plans.reference_case is None) == (plans.prealignment in TO_REFERENCE):
        faults.append(f"reference_case is {plans.reference_case}, but prealignment is {plans.prealignment}")
    if plans.crop == "labels" and plans.prealignment != "affine_focus":
        faults.append("crop 'labels' needs prealignment 'affine_focus', which finds them again")
    return faults


def _training_faults(plans: TrainingPlans) -> list[str]:
    counts = {
        "epochs": plans.epochs,
        "iterations_per_epoch": plans.iterations_per_epoch,
        "batch_size": plans.batch_size,
        "labels_per_step": plans.labels_per_step,
    }
    faults = [f"{field} is {value}, but must be at least 1" for field, value in counts.items() if value < 1]
    if plans.learning_rate <= 0:
        faults.append(f"learning_rate is {plans.learning_rate}, but must be above 0")
    if plans.similarity_window_voxels % 2 == 0:
        faults.append(f"similarity_window_voxels is {plans.similarity_window_voxels}, but must be odd")
    return faults


def network_faults(plans: NetworkPlans) -> list[str]:
    """Find what contradicts itself in the shape of a network.

    Args:
        plans: Shape of the network.

    Returns:
        One line for each contradiction.
    """
    faults = _encoder_faults(plans.encoder)
    if min(plans.encoder.feature_size, *plans.decoder_channels) < 1:
        faults.append(
            f"feature_size {plans.encoder.feature_size} and decoder_channels {plans.decoder_channels} must be above 0"
        )
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
    return faults + (_swin_faults(plans) if plans.family == "swin" else []) + _tuning_faults(plans)


def _tuning_faults(plans: EncoderPlans) -> list[str]:
    faults = []
    if (plans.lora is not None) != (plans.tuning == "lora"):
        faults.append(f"encoder.tuning is '{plans.tuning}', but encoder.lora is {plans.lora}")
    if plans.lora is not None and (plans.lora.rank < 1 or plans.lora.alpha <= 0):
        faults.append(f"encoder.lora has rank {plans.lora.rank} and alpha {plans.lora.alpha}, but both must be above 0")
    if plans.lora is not None and plans.family != "swin":
        faults.append(f"encoder.lora adapts the attention of a Swin encoder, but encoder.family is '{plans.family}'")
    if plans.init == "scratch" and plans.tuning != "full":
        faults.append(f"encoder.tuning is '{plans.tuning}', but encoder.init 'scratch' gives no weights worth keeping")
    if plans.init != "scratch" and not VOCO_ENCODERS[plans.init].fits(plans):
        faults.append(f"the encoder's shape is not the one of encoder.init '{plans.init}': {VOCO_ENCODERS[plans.init]}")
    return faults


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
