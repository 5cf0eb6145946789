"""The rules of the network and its training: each a pure function from facts to one decision and its reason."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from biasreg.core.dataset_json import Pairing, PairNames
from biasreg.planning.decision import Decision
from biasreg.planning.grid_rules import Layout, Triple
from biasreg.planning.plans import NetworkPlans, Similarity
from biasreg.planning.voco import VOCO_ENCODERS, VocoEncoder

Device = Literal["cpu", "cuda"]

PAPER_LEVELS = 4
# A level that compares neighbours and reads two 3×3×3 convolutions of that finds what lies this many voxels away.
LEVEL_REACH_VOXELS = 3
MANY_LABELS = 8
MOST_STAGES = 4  # of VoCo's encoder
MOST_PAIRS = 4  # per step; more gains nothing that more steps do not
_TUNING = {"lora": "LoRA", "frozen": "frozen", "full": "fine-tuned"}


class Width(NamedTuple):
    """How wide a network is.

    Attributes:
        name: What it is called in reasons.
        feature_size: Width of the encoder.
        blocks: Blocks per encoder stage.
        window_size: Side of the attention window in tokens.
        decoder_channels: Channels of the decoders, finest first.
    """

    name: str
    feature_size: int
    blocks: int
    window_size: int
    decoder_channels: tuple[int, ...]


PAPER_WIDTH = Width("VoCo-B's and the paper's width", 48, 2, 7, (16, 32, 64, 128, 128, 256))
HALF_WIDTH = Width("half of VoCo-B's and the paper's width", 24, 2, 7, (8, 16, 32, 64, 64, 128))
# Windows of 4 instead of 7 tokens halve the time of a step on a CPU. At the finest level 16 channels cost 1.4 times a
# step with 8, for CPUs compute 16 at once.
CPU_WIDTH = Width("a network whose step takes seconds on a CPU", 24, 1, 4, (16, 16, 32, 64, 64, 64))


class Effort(NamedTuple):
    """What a design may spend.

    Attributes:
        width: How wide the network is.
        checkpointing: Whether activations are computed a second time instead of kept.
    """

    width: Width
    checkpointing: bool


def efforts(device: Device, voco: VocoEncoder | None = None) -> tuple[Effort, ...]:
    """List what a device may spend on a network, best first: what does not fit gives way in this order.

    Recomputing activations costs a third more time and no accuracy, so that it comes before a narrower network; a
    coarser grid comes last, for what the grid does not show cannot be aligned.

    Args:
        device: Device that will train.
        voco: The pretrained encoder that the user wants, whose width cannot be chosen.

    Returns:
        The efforts.
    """
    widths = (CPU_WIDTH,) if device == "cpu" else (PAPER_WIDTH, HALF_WIDTH)
    if voco is not None:
        name = f"{voco.title}'s width, decoders as wide as the paper's"
        widths = (PAPER_WIDTH._replace(name=name, feature_size=voco.feature_size),)
    return tuple(Effort(width, checkpointing) for width in widths for checkpointing in (False, True))


def max_stages(device: Device) -> int:
    """Largest number of encoder stages: VoCo's four, or three on a CPU, where depth costs time."""
    return 3 if device == "cpu" else MOST_STAGES


def choose_levels(displacement_mm: float, spacing: Triple, layout: Layout) -> Decision[int]:
    """Choose the number of fields: the paper's four, or more where the coarsest must reach farther.

    A level finds what lies three of its voxels away, so that the coarsest has to be as coarse as the expected
    displacement asks. The grid bounds both.

    Args:
        displacement_mm: Displacement that is expected between two cases in their frames.
        spacing: Voxel size of the finest level in mm.
        layout: The grid and its pyramid.

    Returns:
        Number of registration levels.
    """
    reaches = []  # of the coarsest of 1, 2, … levels, along its finest axis
    size = list(spacing)
    for step in ((1, 1, 1), *layout.strides):
        size = [side * factor for side, factor in zip(size, step, strict=True)]
        reaches.append(LEVEL_REACH_VOXELS * min(size))
    needed = next((count for count, reach in enumerate(reaches, 1) if reach >= displacement_mm), len(reaches))
    levels = min(max(PAPER_LEVELS, needed), len(reaches))
    reach = reaches[levels - 1]
    verdict = "reaches" if reach >= displacement_mm else "does not reach"
    why = f"the coarsest of {levels} levels finds {reach:.3g} mm, which {verdict} the {displacement_mm:.3g} mm expected"
    return Decision(levels, why)


def choose_integration(pairing: Pairing, subjects: Mapping[str, str], listed: Sequence[PairNames]) -> Decision[int]:
    """Choose whether the residual fields are integrated to diffeomorphisms.

    Args:
        pairing: Pairing of the dataset.
        subjects: Subject of the cases that dataset.json names one for.
        listed: Its listed pairs.

    Returns:
        Scaling-and-squaring steps: 7, or 0 within a subject, where organs may slide along each other.
    """
    within = [subjects.get(pair.moving, pair.moving) == subjects.get(pair.fixed, pair.fixed) for pair in listed]
    if pairing == "intra-subject" or (pairing == "listed" and any(within)):
        return Decision(0, "within a subject organs may slide along each other")
    if pairing == "listed":
        return Decision(
            7, "the listed pairs are of different subjects, as far as dataset.json says: a diffeomorphic map"
        )
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


def describe_network(network: NetworkPlans, similarity: Similarity) -> str:
    """Name what a network is made of in a line, for logs and tables.

    Args:
        network: Shape of the network.
        similarity: Similarity that it is trained with.

    Returns:
        The line.
    """
    encoder = network.encoder
    extras = ["checkpointing"] if network.checkpointing else []
    kind: str = encoder.family
    if encoder.init != "scratch":
        kind = f"{VOCO_ENCODERS[encoder.init].title} ({_TUNING[encoder.tuning]}) {kind}"
    sizes = f"{kind} {encoder.feature_size}, decoders from {network.decoder_channels[0]}"
    return ", ".join([sizes, f"{network.registration_levels} levels", similarity, *extras])
