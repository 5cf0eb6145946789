"""From facts to plans: applies each rule once, and keeps its reason."""

from dataclasses import dataclass, replace

from biasreg.core.dataset_json import DatasetJson
from biasreg.core.errors import DatasetError, PlansError
from biasreg.core.serialization import content_hash
from biasreg.planning import grid_rules, network_rules, rules, training_rules
from biasreg.planning.encoder_rules import EncoderChoice, EncoderWish, check_choice, choose_encoder
from biasreg.planning.fingerprint_records import Fingerprint, Triple
from biasreg.planning.memory import CPU_VOXEL_BUDGET, step_memory_gib, usable_memory_gib
from biasreg.planning.network_rules import Device, Effort
from biasreg.planning.plans import (
    DEFAULT_PLANS_NAME,
    PLANS_SCHEMA_VERSION,
    TO_REFERENCE,
    Configuration,
    NetworkPlans,
    Plans,
    PreprocessingPlans,
)
from biasreg.planning.shared_centers import extent_about, shared_centers
from biasreg.planning.voco import VOCO_ENCODERS

FULL_RESOLUTION = "3d_fullres"
LOW_RESOLUTION = "3d_lowres"
PLANNED = (FULL_RESOLUTION, LOW_RESOLUTION)
BY_USER = "set by the user"
_GOALS = {
    "cuda": "the memory holds a step on the whole field of view",
    "cpu": f"the whole field of view has {CPU_VOXEL_BUDGET:,} voxels, which a CPU trains on in hours",
}


@dataclass(frozen=True)
class Target:
    """What the plans are made for.

    Attributes:
        device: Device that will train.
        memory_gib: Its memory in GiB.
        plans_name: Name of the plans.
        spacing: Voxel size in mm along x, y, z that the user wants; None for what the rules give.
        installed: Names of the VoCo encoders whose weights are installed.
        encoder: Encoder that the user wants; `auto` for what the rules give.
    """

    device: Device
    memory_gib: float
    plans_name: str = DEFAULT_PLANS_NAME
    spacing: Triple | None = None
    installed: tuple[str, ...] = ()
    encoder: EncoderChoice = "auto"


@dataclass(frozen=True)
class Design:
    """A configuration with the reason of each decision, and the memory that a training step of it is expected to take.

    Attributes:
        configuration: The configuration.
        why: Reasons by rule.
        memory_gib: Expected peak in GiB.
    """

    configuration: Configuration
    why: dict[str, str]
    memory_gib: float


def plan_experiment(fingerprint: Fingerprint, dataset: DatasetJson, target: Target) -> Plans:
    """Decide everything that training and prediction need.

    Args:
        fingerprint: Facts about the training cases.
        dataset: Labels, channels and pairing as the user states them.
        target: Device, name of the plans, and what the user wants otherwise.

    Returns:
        The plans, with the reason of each decision under `why`.

    Raises:
        DatasetError: If the fingerprint has no cases.
        PlansError: If the device is too small, or the encoder that the user wants cannot be had.
    """
    if not fingerprint.cases:
        raise DatasetError(f"{fingerprint.dataset_name} has no training cases · add images to imagesTr")
    designs = _design_all(_Designer(fingerprint, dataset, target))
    default = LOW_RESOLUTION if LOW_RESOLUTION in designs else FULL_RESOLUTION
    return Plans(
        schema_version=PLANS_SCHEMA_VERSION,
        plans_name=target.plans_name,
        dataset_name=fingerprint.dataset_name,
        fingerprint_hash=content_hash(fingerprint),
        device=target.device,
        memory_gib=target.memory_gib,
        pairing=dataset.pairing,
        default_configuration=default,
        configurations={name: design.configuration for name, design in designs.items()},
        why={name: design.why for name, design in designs.items()},
    )


def _design_all(designer: "_Designer") -> dict[str, Design]:
    """Design the data's own resolution and, where that does not fit the device whole, a coarser one."""
    own = grid_rules.choose_spacing(designer.spacings)
    if designer.target.spacing is not None:
        wanted = grid_rules.rounded_spacing(designer.target.spacing)
        name = LOW_RESOLUTION if grid_rules.is_coarser(wanted, designer.spacings) else FULL_RESOLUTION
        return {name: _best(designer, wanted, BY_USER)}
    full = _best(designer, own.value, own.why)
    if designer.fits(full) and designer.is_quick(full):
        return {FULL_RESOLUTION: full}

    def is_enough(spacing: Triple) -> bool:
        try:
            design = _best(designer, spacing, "")
        except PlansError:  # the encoder that the user wants needs more voxels than the memory holds
            raise PlansError(
                f"--encoder {designer.target.encoder}, but {full.why['memory']}, and on a grid that fits it cannot "
                "be used · plan for more memory (-gpu_memory_target), or leave --encoder out"
            ) from None
        return designer.fits(design) and designer.is_quick(design)

    coarser = grid_rules.coarsen(own.value, is_enough, _GOALS[designer.target.device])
    return {LOW_RESOLUTION: _best(designer, coarser.value, f"{own.why}, {coarser.why}"), FULL_RESOLUTION: full}


def _best(designer: "_Designer", spacing: Triple, why: str) -> Design:
    """Design with the best effort that fits the device; where none does, with the best that recomputes activations."""
    efforts = network_rules.efforts(designer.target.device, VOCO_ENCODERS.get(designer.target.encoder))
    designs = (designer.design(spacing, effort, why) for effort in efforts)
    fitting = next((design for design in designs if designer.fits(design)), None)
    if fitting is None:
        return designer.design(spacing, efforts[0]._replace(checkpointing=True), why)
    return designer.fill(fitting)


def describe_memory(configuration: Configuration, device: Device, memory_gib: float) -> str:
    """Say what memory a training step is expected to take, and whether the device holds it.

    Args:
        configuration: What is trained.
        device: Device that will train.
        memory_gib: Its memory in GiB.

    Returns:
        The sentence.
    """
    needed, limit = step_memory_gib(configuration, device), usable_memory_gib(device, memory_gib)
    verdict = "fits" if needed <= limit else "does NOT fit"
    sized = f"{configuration.training.batch_size} pair(s) in a step need {needed:.1f} GiB, which {verdict}"
    return f"{sized} the {limit:.1f} GiB usable of {memory_gib:g} GiB ({device})"


class _Designer:
    """Makes configurations of one dataset; what does not depend on the resolution is decided once."""

    def __init__(self, fingerprint: Fingerprint, dataset: DatasetJson, target: Target) -> None:
        cases = fingerprint.cases
        self.dataset, self.target = dataset, target
        self.spacings = [case.world_spacing for case in cases]
        anatomy = [case.foreground_extent_mm for case in cases]
        labels = [case.label_extent_mm for case in cases]
        prealignment = rules.choose_prealignment(fingerprint.pairs, dataset.pairing)
        crop = rules.choose_crop(anatomy, labels, prealignment.value)
        shown = {case.identifier: case.foreground_extent_mm for case in cases}
        if crop.value == "labels":
            shown = {case.identifier: case.label_extent_mm for case in cases if case.label_extent_mm}
        displacement = rules.choose_displacement(fingerprint.pairs, prealignment.value, list(shown.values()))
        if prealignment.value == "none":
            centers = shared_centers(fingerprint, dataset.pairing)
            shown = {case.identifier: extent_about(case, centers[case.identifier]) for case in cases}
        reference = fingerprint.reference_case if prealignment.value in TO_REFERENCE else None
        scaled_to = reference if prealignment.value != "rigid" else None
        field_of_view = grid_rules.choose_field_of_view(shown, displacement.value, f"the {crop.value}", scaled_to)
        self.displacement_mm, self.field_of_view_mm = displacement.value, field_of_view.value
        foreground = sorted((value, name) for name, value in dataset.labels.items() if value != 0)
        self.label_values = tuple(value for value, _ in foreground)
        volumes = [case.label_volumes_mm3 for case in cases]
        self.supervision = training_rules.choose_supervision(volumes, len(foreground))
        self.similarity = rules.choose_similarity([case.modality for case in cases])
        modality = rules.choose_modality([case.modality for case in cases])
        self.wish = EncoderWish(target.encoder, target.installed, target.device, modality.value)
        check_choice(self.wish)
        # Further channels, such as the PET of a PET/CT, have a modality of their own.
        kinds = [modality.value, *(dataset.channel_names[str(index)] for index in range(1, len(dataset.channel_names)))]
        normalization = [
            rules.choose_normalization(kind, [case.channels[index] for case in cases])
            for index, kind in enumerate(kinds)
        ]
        self.preprocessing = PreprocessingPlans(
            spacing=(1.0, 1.0, 1.0),
            patch_size=(1, 1, 1),
            modality=modality.value,
            normalization=tuple(decision.value for decision in normalization),
            prealignment=prealignment.value,
            crop=crop.value,
            reference_case=reference,
            label_values=self.label_values,
            label_names=tuple(name for _, name in foreground),
        )
        self.why = {
            "modality": modality.why,
            "normalization": "; ".join(dict.fromkeys(decision.why for decision in normalization)),
            "similarity": self.similarity.why,
            "supervision": self.supervision.why,
            "prealignment": prealignment.why,
            "crop": crop.why,
            "displacement": displacement.why,
            "field_of_view": field_of_view.why,
        }

    def design(self, spacing: Triple, effort: Effort, why: str) -> Design:
        """Design a configuration at a spacing, with one pair per step."""
        layout = grid_rules.lay_out(self.field_of_view_mm, spacing, network_rules.max_stages(self.target.device))
        network, network_why = self._network(spacing, layout.value, effort)
        weights = training_rules.choose_loss_weights(self.supervision.value)
        training = training_rules.choose_training(self.target.device, self.similarity.value, weights.value, spacing)
        preprocessing = replace(self.preprocessing, spacing=spacing, patch_size=layout.value.patch_size)
        configuration = Configuration(preprocessing, network, training.value)
        reasons = {"spacing": why, "patch_size": layout.why, **network_why}
        reasons |= {"schedule": training.why, "weights": weights.why}
        return self._described(configuration, {**self.why, **reasons})

    def fits(self, design: Design) -> bool:
        """Tell whether the memory of the device holds a training step."""
        return design.memory_gib <= usable_memory_gib(self.target.device, self.target.memory_gib)

    def is_quick(self, design: Design) -> bool:
        """Tell whether a CPU can train a design in hours; a GPU always can."""
        x, y, z = design.configuration.preprocessing.patch_size
        return self.target.device == "cuda" or x * y * z <= CPU_VOXEL_BUDGET

    def fill(self, design: Design) -> Design:
        """Put more pairs into a step of a small grid, where a GPU has memory left."""
        best = design
        if self.target.device == "cuda":
            for pairs in range(2, network_rules.MOST_PAIRS + 1):
                training = replace(design.configuration.training, batch_size=pairs)
                more = self._described(replace(design.configuration, training=training), design.why)
                best = more if self.fits(more) else best
        return best

    def _described(self, configuration: Configuration, why: dict[str, str]) -> Design:
        memory = describe_memory(configuration, self.target.device, self.target.memory_gib)
        needed = step_memory_gib(configuration, self.target.device)
        return Design(configuration, {**why, "memory": memory}, needed)

    def _network(
        self, spacing: Triple, layout: grid_rules.Layout, effort: Effort
    ) -> tuple[NetworkPlans, dict[str, str]]:
        encoder = choose_encoder(effort.width, layout, self.wish)
        levels = network_rules.choose_levels(self.displacement_mm, spacing, layout)
        # Labels that dataset.json names but no case shows cannot be learnt: then there is no segmentation head.
        num_labels = 1 if self.supervision.value == "none" else len(self.label_values) + 1
        segmentation_level = network_rules.choose_segmentation_level(num_labels)
        integration = network_rules.choose_integration(self.dataset.pairing, self.dataset.subjects, self.dataset.pairs)
        correlation = network_rules.choose_correlation_levels(levels.value)
        network = NetworkPlans(
            in_channels=len(self.dataset.channel_names),
            num_labels=num_labels,
            encoder=encoder.value,
            decoder_channels=effort.width.decoder_channels[: len(layout.strides) + 1],
            registration_levels=levels.value,
            segmentation_level=segmentation_level.value,
            integration_steps=integration.value,
            correlation_levels=correlation.value,
            streams="both",
            biaf=True,
            mac=True,
            checkpointing=effort.checkpointing,
        )
        why = {
            "encoder": encoder.why if self.wish.choice == "auto" else BY_USER,
            "levels": levels.why,
            "segmentation_level": segmentation_level.why,
            "integration": integration.why,
            "correlation": correlation.why,
        }
        return network, why
