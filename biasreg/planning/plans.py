"""The plans: every decision that later steps obey, as one frozen record.

`network/build.py`, `training/fold.py`, `inference/predictor.py` and the commands read these records; everything else
takes plain arguments. Each decision is made once, by a rule of `planning/*rules.py`, whose reason stands under `why`.
"""

import math
from dataclasses import dataclass
from typing import Literal

from biasreg.core.dataset_json import Pairing

PLANS_SCHEMA_VERSION = 4
DEFAULT_PLANS_NAME = "biasregPlans"

PreAlignment = Literal["none", "center", "rigid", "affine", "affine_focus"]
TO_REFERENCE: tuple[PreAlignment, ...] = ("rigid", "affine", "affine_focus")  # those that align to a reference case
Crop = Literal["anatomy", "labels"]
NormalizationScheme = Literal["window", "percentile"]
EncoderFamily = Literal["swin", "residual"]
EncoderInit = Literal["scratch", "voco_b", "voco_l", "voco_h"]
EncoderTuning = Literal["full", "lora", "frozen"]
Streams = Literal["both", "semantic", "intensity"]
Similarity = Literal["lncc", "mind"]


@dataclass(frozen=True)
class ChannelNormalization:
    """How one channel's intensities become [0, 1].

    Attributes:
        scheme: `window` clips to the fixed range [lower, upper] and scales it; `percentile` takes the range of each
            image from its own foreground's percentiles [lower, upper] (0 to 100).
        lower: Lower end: intensity for `window`, percentile for `percentile`.
        upper: Upper end, same unit.
    """

    scheme: NormalizationScheme
    lower: float
    upper: float


@dataclass(frozen=True)
class PreprocessingPlans:
    """How a raw case becomes an array on the canonical grid.

    The canonical grid has RAS axes and its centre at the origin of the canonical frame; a rigid or affine `frame` per
    case maps it into that case's world.

    Attributes:
        spacing: Voxel size of the canonical grid in mm, along x, y, z.
        patch_size: Shape of the canonical grid in voxels: the whole field of view plus a margin, and a multiple of the
            network's divisor.
        modality: Modality that foreground detection and normalisation assume; `mixed` when cases differ.
        normalization: One entry per channel.
        prealignment: How each case is brought into the canonical frame.
        crop: What the grid covers, and what its centre is the centre of: the `anatomy`, or what the reference case's
            `labels` show.
        reference_case: The case that all others are aligned to when `prealignment` is `rigid`, `affine`, or
            `affine_focus`, which fits an affine map to the part of it that its labels show. Else None.
        label_values: The file's value of each foreground label; class k+1 of the network is `label_values[k]`.
        label_names: Name of each foreground label, in the same order.
    """

    spacing: tuple[float, float, float]
    patch_size: tuple[int, int, int]
    modality: str
    normalization: tuple[ChannelNormalization, ...]
    prealignment: PreAlignment
    crop: Crop
    reference_case: str | None
    label_values: tuple[int, ...]
    label_names: tuple[str, ...]


@dataclass(frozen=True)
class LoraPlans:
    """Low-rank adapters: W x + (alpha / rank) · B A x beside frozen weights W.

    Attributes:
        rank: Rank of each adapter.
        alpha: Scale of the adapters.
        mlp: Adapt the MLPs of the Swin blocks too, not only the projections of their attention.
    """

    rank: int
    alpha: float
    mlp: bool


@dataclass(frozen=True)
class EncoderPlans:
    """Shape of the weight-shared encoder.

    Attributes:
        family: `swin` is VoCo's encoder (SwinUNETR's, SwinTransformer v2); `residual` a plain convolution pyramid with
            the same taps.
        init: Where the weights start: random (`scratch`), or a pretrained VoCo encoder of the given size.
        tuning: What trains: all of it (`full`), adapters beside the frozen weights (`lora`), or nothing (`frozen`).
        lora: The adapters; None unless `tuning` is `lora`.
        feature_size: Channels of the finest features; doubles with each stage.
        depths: Swin blocks (or residual blocks) per stage. The number of stages fixes the pyramid's depth: the
            encoder gives `len(depths) + 2` feature maps, on the grid and on ever coarser ones, see `strides`.
        heads: Attention heads per stage (unused by `residual`).
        window_size: Side of the attention window in tokens (unused by `residual`).
        strides: Factor along x, y, z, 1 or 2, from each feature map to the next coarser, finest first; one more than
            stages. A Swin encoder halves all axes each time; `residual` may halve coarse axes later.
    """

    family: EncoderFamily
    init: EncoderInit
    tuning: EncoderTuning
    lora: LoraPlans | None
    feature_size: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window_size: int
    strides: tuple[tuple[int, int, int], ...]

    def factors(self, level: int) -> tuple[int, int, int]:
        """How many voxels of the grid one voxel of a level spans along x, y, z."""
        x, y, z = (math.prod(step[axis] for step in self.strides[:level]) for axis in range(3))
        return x, y, z


@dataclass(frozen=True)
class NetworkPlans:
    """Shape of BIASNet.

    Attributes:
        in_channels: Image channels.
        num_labels: Foreground labels plus background; 1 when the dataset has no labels (then no segmentation head).
        encoder: The encoder.
        decoder_channels: Channels of the decoders' features, finest level first; one per encoder feature map.
        registration_levels: Number of fields Φ; level 0 is the finest, on the whole grid.
        segmentation_level: Level whose semantic features the segmentation head reads.
        integration_steps: Scaling-and-squaring steps per level residual; 0 takes the residual as a displacement.
        correlation_levels: Levels that also see a local correlation volume (27 neighbours).
        streams: `both` decoders (the paper), or one of them alone (ablation).
        biaf: Learned alignment offsets in the decoders (False: plain gated fusion).
        mac: Intensity features enhance semantic ones through MAC (False: they are concatenated by a 1×1×1 convolution).
        checkpointing: Recompute activations in the backward pass to save memory.
    """

    in_channels: int
    num_labels: int
    encoder: EncoderPlans
    decoder_channels: tuple[int, ...]
    registration_levels: int
    segmentation_level: int
    integration_steps: int
    correlation_levels: tuple[int, ...]
    streams: Streams
    biaf: bool
    mac: bool
    checkpointing: bool

    @property
    def divisor(self) -> tuple[int, int, int]:
        """Side lengths of the input along x, y, z must be multiples of these."""
        return self.encoder.factors(len(self.encoder.strides))


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term of the objective."""

    similarity: float
    smoothness: float
    overlap: float
    segmentation: float
    consistency: float


@dataclass(frozen=True)
class AugmentationPlans:
    """Strength of the augmentation.

    Attributes:
        shared_rotation_deg: Largest rotation applied to both images of a pair alike, per axis.
        shared_scaling: Largest relative scaling applied to both alike.
        single_rotation_deg: Largest further rotation of each image by itself.
        single_scaling: Largest further relative scaling of each image by itself.
        single_translation_mm: Largest further shift of each image by itself, per axis.
        probability: Probability that a pair is augmented in space, and of each intensity transform.
    """

    shared_rotation_deg: float
    shared_scaling: float
    single_rotation_deg: float
    single_scaling: float
    single_translation_mm: float
    probability: float


@dataclass(frozen=True)
class TrainingPlans:
    """The recipe.

    Attributes:
        epochs: Number of epochs.
        iterations_per_epoch: Optimiser steps per epoch.
        batch_size: Pairs per step.
        learning_rate: Start of the polynomial decay.
        learning_rate_power: Exponent of the polynomial decay.
        learning_rate_warmup: Fraction of training over which the learning rate rises from 0.
        gradient_clip: Largest norm of the gradient.
        averaging_decay: Decay of the moving average of the weights that validation and prediction use; 0 takes the
            weights as they are.
        similarity: `lncc` within a modality, `mind` across modalities.
        similarity_window_voxels: Side of the local NCC window.
        weights: Weight of each loss term.
        consistency_warmup: Fraction of training over which the ARDC weight rises from 0.
        consistency_interval: ARDC is computed in every so many steps, for it takes as long as all the rest.
        labels_per_step: At most this many labels enter the overlap term in one step.
        augmentation: Strength of the augmentation.
        validation_pairs: Number of held-out pairs that validation is measured on.
    """

    epochs: int
    iterations_per_epoch: int
    batch_size: int
    learning_rate: float
    learning_rate_power: float
    learning_rate_warmup: float
    gradient_clip: float
    averaging_decay: float
    similarity: Similarity
    similarity_window_voxels: int
    weights: LossWeights
    consistency_warmup: float
    consistency_interval: int
    labels_per_step: int
    augmentation: AugmentationPlans
    validation_pairs: int


@dataclass(frozen=True)
class Configuration:
    """One complete way of working: preprocessing, network and recipe that belong together."""

    preprocessing: PreprocessingPlans
    network: NetworkPlans
    training: TrainingPlans


@dataclass(frozen=True)
class Plans:
    """All decisions for a dataset.

    Attributes:
        schema_version: Version of this record's layout.
        plans_name: Name of these plans; a dataset may have several.
        dataset_name: Full dataset name, for example `Dataset501_Hippocampus`.
        fingerprint_hash: Content hash of the fingerprint that the plans follow.
        device: Device the plans were made for: `cpu` or `cuda`.
        memory_gib: Memory of that device that training may use, in GiB.
        pairing: Which pairs training draws: `inter-subject`, `intra-subject` or `listed`.
        default_configuration: Configuration used when none is named.
        configurations: Configuration by name.
        why: Reason of each decision, by configuration and rule.
    """

    schema_version: int
    plans_name: str
    dataset_name: str
    fingerprint_hash: str
    device: Literal["cpu", "cuda"]
    memory_gib: float
    pairing: Pairing
    default_configuration: str
    configurations: dict[str, Configuration]
    why: dict[str, dict[str, str]]
