"""From facts to plans: applies each rule once, and keeps its reason."""

from dataclasses import dataclass
from typing import Literal

from biasreg.core.dataset_json import DatasetJson
from biasreg.core.errors import DatasetError
from biasreg.core.serialization import content_hash
from biasreg.planning import grid_rules, rules
from biasreg.planning.fingerprint import Fingerprint
from biasreg.planning.memory import step_memory_gib, voxel_budget
from biasreg.planning.plans import (
    AFFINE,
    DEFAULT_PLANS_NAME,
    PLANS_SCHEMA_VERSION,
    AugmentationPlans,
    Configuration,
    LossWeights,
    NetworkPlans,
    Plans,
    PreprocessingPlans,
    TrainingPlans,
)

FULL_RESOLUTION = "3d_fullres"
LOW_RESOLUTION = "3d_lowres"


@dataclass(frozen=True)
class Target:
    """What the plans are made for.

    Attributes:
        device: Device that will train.
        memory_gib: Its memory in GiB.
        plans_name: Name of the plans.
    """

    device: Literal["cpu", "cuda"]
    memory_gib: float
    plans_name: str = DEFAULT_PLANS_NAME


def plan_experiment(fingerprint: Fingerprint, dataset: DatasetJson, target: Target) -> Plans:
    """Decide everything that training and prediction need.

    Args:
        fingerprint: Facts about the training cases.
        dataset: Labels, channels and pairing as the user states them.
        target: Device and name of the plans.

    Returns:
        The plans, with the reason of each decision under `why`.

    Raises:
        DatasetError: If the fingerprint has no cases.
    """
    if not fingerprint.cases:
        raise DatasetError(f"{fingerprint.dataset_name} has no training cases · add images to imagesTr")
    preset = rules.device_preset(target.device)
    preprocessing, stages, why = _plan_preprocessing(fingerprint, dataset, target, preset.value)
    has_labels = any(case.label_volumes_mm3 for case in fingerprint.cases)
    # Labels that dataset.json names but no case shows cannot be learnt: then there is no segmentation head.
    num_labels = len(preprocessing.label_values) + 1 if has_labels else 1
    network, network_why = _plan_network(dataset, num_labels, preset.value, stages)
    training, training_why = _plan_training(fingerprint, preprocessing, preset.value, has_labels=has_labels)
    voxels = preprocessing.patch_size[0] * preprocessing.patch_size[1] * preprocessing.patch_size[2]
    predicted = step_memory_gib(voxels, network.decoder_channels[0])
    coarsened = grid_rules.is_coarser(preprocessing.spacing, _spacings(fingerprint))
    name = LOW_RESOLUTION if coarsened else FULL_RESOLUTION
    why = {
        "device": f"{preset.why}; about {predicted:.1f} of {target.memory_gib:g} GiB expected",
        "configuration": "the data's own resolution fits" if not coarsened else "full resolution does not fit whole",
        **why,
        **network_why,
        **training_why,
    }
    return Plans(
        schema_version=PLANS_SCHEMA_VERSION,
        plans_name=target.plans_name,
        dataset_name=fingerprint.dataset_name,
        fingerprint_hash=content_hash(fingerprint),
        device=target.device,
        memory_gib=target.memory_gib,
        pairing=dataset.pairing,
        default_configuration=name,
        configurations={name: Configuration(preprocessing, network, training)},
        why=why,
    )


def _plan_preprocessing(
    fingerprint: Fingerprint, dataset: DatasetJson, target: Target, preset: rules.DevicePreset
) -> tuple[PreprocessingPlans, int, dict[str, str]]:
    cases = fingerprint.cases
    budget = voxel_budget(target.device, target.memory_gib, preset.decoder_channels[0])
    spacing, patch_size, stages, why = _plan_grid(fingerprint, budget, preset.max_stages)
    modality = rules.choose_modality([case.modality for case in cases])
    # Further channels, such as the PET of a PET/CT, have a modality of their own.
    kinds = [modality.value, *(dataset.channel_names[str(index)] for index in range(1, len(dataset.channel_names)))]
    normalization = [
        rules.choose_normalization(kind, [case.channels[index] for case in cases]) for index, kind in enumerate(kinds)
    ]
    prealignment = rules.choose_prealignment(fingerprint.alignment, dataset.pairing)
    labels = sorted((value, name) for name, value in dataset.labels.items() if value != 0)
    why |= {
        "modality": modality.why,
        "normalization": "; ".join(dict.fromkeys(decision.why for decision in normalization)),
        "prealignment": prealignment.why,
    }
    plans = PreprocessingPlans(
        spacing=spacing,
        patch_size=patch_size,
        modality=modality.value,
        normalization=tuple(decision.value for decision in normalization),
        prealignment=prealignment.value,
        reference_case=fingerprint.reference_case if prealignment.value in AFFINE else None,
        label_values=tuple(value for value, _ in labels),
        label_names=tuple(name for _, name in labels),
    )
    return plans, stages, why


def _plan_grid(
    fingerprint: Fingerprint, budget_voxels: int, max_stages: int
) -> tuple[grid_rules.Triple, grid_rules.Shape, int, dict[str, str]]:
    """Decide spacing, patch size and number of stages, which depend on each other."""
    field_of_view = grid_rules.choose_field_of_view([case.foreground_extent_mm for case in fingerprint.cases])
    spacings = _spacings(fingerprint)
    # A deeper pyramid needs a larger divisor, and so more padding: take the deepest that its own grid still allows.
    for depth in range(max_stages, 0, -1):
        spacing = grid_rules.choose_spacing(spacings, field_of_view.value, 2 ** (depth + 1), budget_voxels)
        stages = grid_rules.choose_stages(field_of_view.value, spacing.value, depth)
        if stages.value == depth:
            break
    patch_size = grid_rules.choose_patch_size(field_of_view.value, spacing.value, 2 ** (stages.value + 1))
    why = {
        "field_of_view": field_of_view.why,
        "spacing": spacing.why,
        "stages": stages.why,
        "patch_size": patch_size.why,
    }
    return spacing.value, patch_size.value, stages.value, why


def _spacings(fingerprint: Fingerprint) -> list[grid_rules.Triple]:
    return [grid_rules.world_spacing(case.geometry) for case in fingerprint.cases]


def _plan_network(
    dataset: DatasetJson, num_labels: int, preset: rules.DevicePreset, stages: int
) -> tuple[NetworkPlans, dict[str, str]]:
    encoder = rules.choose_encoder(preset, stages)
    segmentation_level = rules.choose_segmentation_level(num_labels)
    integration = rules.choose_integration(dataset.pairing)
    levels = rules.registration_levels(stages)
    correlation = rules.choose_correlation_levels(levels)
    network = NetworkPlans(
        in_channels=len(dataset.channel_names),
        num_labels=num_labels,
        encoder=encoder.value,
        decoder_channels=preset.decoder_channels[: stages + 2],
        registration_levels=levels,
        segmentation_level=segmentation_level.value,
        integration_steps=integration.value,
        correlation_levels=correlation.value,
        streams="both",
        biaf=True,
        mac=True,
        checkpointing=False,
    )
    why = {
        "encoder": encoder.why,
        "segmentation_level": segmentation_level.why,
        "integration": integration.why,
        "correlation": correlation.why,
    }
    return network, why


def _plan_training(
    fingerprint: Fingerprint, preprocessing: PreprocessingPlans, preset: rules.DevicePreset, *, has_labels: bool
) -> tuple[TrainingPlans, dict[str, str]]:
    similarity = rules.choose_similarity([case.modality for case in fingerprint.cases])
    supervised = 1.0 if has_labels else 0.0
    training = TrainingPlans(
        epochs=preset.epochs,
        iterations_per_epoch=preset.iterations_per_epoch,
        batch_size=1,
        learning_rate=preset.learning_rate,
        learning_rate_power=0.9,
        gradient_clip=12.0,
        similarity=similarity.value,
        similarity_window_voxels=9,
        weights=LossWeights(1.0, 1.0, supervised, supervised, supervised),
        consistency_warmup=0.1,
        labels_per_step=preset.labels_per_step,
        augmentation=AugmentationPlans(
            shared_rotation_deg=10.0,
            shared_scaling=0.1,
            single_rotation_deg=3.0,
            single_scaling=0.03,
            single_translation_mm=2.0 * min(preprocessing.spacing),
            probability=0.5,
        ),
        validation_pairs=20,
    )
    supervision = "labels of the cases that have them" if has_labels else "none: no case has labels"
    return training, {"similarity": similarity.why, "supervision": supervision}
