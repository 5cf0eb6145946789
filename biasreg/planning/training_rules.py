"""The rules of training: each a pure function from facts to one decision and its reason."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from biasreg.planning.decision import Decision
from biasreg.planning.grid_rules import Triple
from biasreg.planning.network_rules import Device
from biasreg.planning.plans import AugmentationPlans, LossWeights, Similarity, TrainingPlans

Supervision = Literal["labels", "partial labels", "none"]

# ARDC in each step doubles the time of training, in every fourth one it costs a quarter. On Dataset501 the validation
# Dice after 250 steps was 0.820 without it and 0.819 so (documentation/explanation/method.md).
CONSISTENCY_INTERVAL = 4


class Schedule(NamedTuple):
    """How long and how fast to train.

    Attributes:
        epochs: Number of epochs.
        iterations_per_epoch: Steps per epoch.
        learning_rate: Start of the learning rate's decay.
    """

    epochs: int
    iterations_per_epoch: int
    learning_rate: float


def choose_supervision(cases: Sequence[dict[str, float] | None], num_labels: int) -> Decision[Supervision]:
    """Choose what supervises training besides the images.

    Args:
        cases: Per case the labels that it shows, by file value; None without a label map.
        num_labels: Foreground labels of the dataset.

    Returns:
        `labels` where every case shows all of them, `partial labels` where some do, `none` where nothing is shown.
    """
    shown = [len(labels or ()) for labels in cases]
    if not any(shown):
        return Decision("none", "no case has labels: the images alone, and their smoothness")
    if all(count == num_labels for count in shown):
        return Decision("labels", f"all {len(cases)} cases show all {num_labels} labels")
    labelled = sum(1 for count in shown if count)
    why = (
        f"{labelled} of {len(cases)} cases show labels, {min(shown)} to {max(shown)} of {num_labels}: what is not drawn"
    )
    return Decision("partial labels", f"{why} does not count against a case")


def choose_loss_weights(supervision: Supervision) -> Decision[LossWeights]:
    """Choose the weight of each term of the objective.

    Args:
        supervision: What supervises training besides the images.

    Returns:
        3 for the overlap of the labels and 1 for each other term; 0 for those of labels where there are none.

    Source:
        Chen et al. 2022 (TransMorph, doi:10.1016/j.media.2022.102615): equal weights of similarity, smoothness and Dice
        on OASIS; segmentation and ARDC, which TransMorph does not have, get the same. Deviation: on Dataset501 a weight
        of 3 instead of 1 for Dice raised the validation Dice after 500 steps from 0.835 to 0.851, the field being no
        rougher (documentation/explanation/method.md).
    """
    if supervision == "none":
        return Decision(LossWeights(1.0, 1.0, 0.0, 0.0, 0.0), "without labels only similarity and smoothness count")
    weights = LossWeights(similarity=1.0, smoothness=1.0, overlap=3.0, segmentation=1.0, consistency=1.0)
    return Decision(weights, "TransMorph's equal weights, but that the overlap of labels weighs three times as much")


def choose_labels_per_step(device: Device) -> int:
    """Largest number of labels in the overlap term of one step: each takes a map of the grid's size."""
    return 8 if device == "cpu" else 16


def choose_schedule(device: Device) -> Decision[Schedule]:
    """Choose the length of training and its learning rate.

    Args:
        device: Device that will train.

    Returns:
        100,000 steps on a GPU, as the paper's authors train elsewhere; 5,000 at a higher rate on a CPU. TransMorph and
        VoCo train at 1e-4; with the GPU's network the validation Dice on Dataset501 after 75 steps was 0.804 at 1e-3
        and 0.761 at 1e-4, and runs are often shortened.
    """
    if device == "cpu":
        return Decision(Schedule(100, 50, 2e-3), "5,000 steps: hours, not weeks, on a CPU")
    return Decision(Schedule(400, 250, 5e-4), "100,000 steps, at a rate that suits shorter runs too")


def choose_training(
    device: Device, similarity: Similarity, weights: LossWeights, spacing: Triple
) -> Decision[TrainingPlans]:
    """Put the recipe together, with one pair per step.

    Args:
        device: Device that will train.
        similarity: Similarity of two images.
        weights: Weight of each term of the objective.
        spacing: Voxel size in mm along x, y, z.

    Returns:
        The recipe; the reason is that of its length.
    """
    schedule = choose_schedule(device)
    training = TrainingPlans(
        epochs=schedule.value.epochs,
        iterations_per_epoch=schedule.value.iterations_per_epoch,
        batch_size=1,
        learning_rate=schedule.value.learning_rate,
        learning_rate_power=0.9,
        learning_rate_warmup=0.01,
        gradient_clip=12.0,
        averaging_decay=0.99 if device == "cpu" else 0.999,
        similarity=similarity,
        similarity_window_voxels=9,
        weights=weights,
        consistency_warmup=0.1,
        consistency_interval=CONSISTENCY_INTERVAL,
        labels_per_step=choose_labels_per_step(device),
        augmentation=AugmentationPlans(
            shared_rotation_deg=10.0,
            shared_scaling=0.1,
            single_rotation_deg=3.0,
            single_scaling=0.03,
            single_translation_mm=2.0 * min(spacing),
            probability=0.5,
        ),
        validation_pairs=20,
    )
    return Decision(training, schedule.why)
