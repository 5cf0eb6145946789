"""The optimiser, its learning rate, and one guarded step."""

import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from biasreg.core.errors import TrainingError
from biasreg.losses.objective import Terms

logger = logging.getLogger(__name__)

WEIGHT_DECAY = 1e-5  # SwinUNETR's fine-tuning recipe (Tang et al., CVPR 2022), whose encoder ours is
MAX_SKIPPED = 20  # in a row; and of one epoch, where that is more than it has taken


class StepOutcome(NamedTuple):
    """What one optimisation step did.

    Attributes:
        taken: Whether the weights changed; False when the loss or its gradient was not finite.
        loss: The total loss.
        gradient_norm: Norm of the gradient before clipping.
        terms: Each unweighted term of the loss.
        suspects: Of a step that was not taken, the places in the batch of the pairs with a term that is not finite.
    """

    taken: bool
    loss: float
    gradient_norm: float
    terms: dict[str, float]
    suspects: tuple[int, ...] = ()


def build_optimizer(network: nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """Return AdamW with AMSGrad over the parameters that train.

    Source: Loshchilov and Hutter, ICLR 2019 (AdamW); Reddi et al., ICLR 2018 (AMSGrad, as TransMorph uses it for
    registration: Chen et al., Medical Image Analysis 2022).
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=learning_rate, weight_decay=WEIGHT_DECAY, amsgrad=True)


def polynomial_rate(iteration: int, total: int, start: float, power: float) -> float:
    """Learning rate of a step: start · (1 − iteration / total)^power."""
    return start * (1 - iteration / total) ** power


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def warmup_scale(iteration: int, total: int, fraction: float) -> float:
    """Rise linearly from 0 to 1 over the first `fraction` of `total` steps; 1 from the start if `fraction` is 0."""
    rising = fraction * total
    return 1.0 if rising <= 0 else min(1.0, iteration / rising)


def take_step(
    terms: Terms, optimizer: torch.optim.Optimizer, clip: float, mean: Callable[[Tensor], Tensor] | None = None
) -> StepOutcome:
    """Go one step down the loss's gradient, clipped to norm `clip`; leave the weights alone where it is not finite.

    Args:
        terms: Loss with a graph, and its terms.
        optimizer: Holds the parameters.
        clip: Largest norm of the gradient.
        mean: Averages values over the processes that train together, so that all of them judge alike; None when
            there is but one.

    Returns:
        What happened. All values come from the device in one transfer.
    """
    optimizer.zero_grad(set_to_none=True)
    terms.total.backward()
    norm = nn.utils.clip_grad_norm_([each for group in optimizer.param_groups for each in group["params"]], clip)
    scalars = [terms.total.detach(), norm, *terms.terms.values()]
    measured = torch.stack([scalar.float().to(norm.device) for scalar in scalars])
    loss, gradient_norm, *values = (measured if mean is None else mean(measured)).tolist()
    taken = math.isfinite(loss) and math.isfinite(gradient_norm)
    suspects: tuple[int, ...] = ()
    if taken:
        optimizer.step()
    else:
        suspects = tuple(
            place for place, pair in enumerate(terms.pairs) if not all(bool(term.isfinite()) for term in pair.values())
        )
    return StepOutcome(taken, loss, gradient_norm, dict(zip(terms.terms, values, strict=True)), suspects)


def check_skipped(outcome: StepOutcome, in_a_row: int, in_epoch: tuple[int, int], where: str) -> None:
    """Report a step that was skipped, and stop when too many were.

    Args:
        outcome: The skipped step.
        in_a_row: Number of skipped steps up to and with this one.
        in_epoch: Number of steps of the running epoch that were skipped, with this one, and that were taken.
        where: Iteration and pair, for the message.

    Raises:
        TrainingError: If more than 20 steps were skipped, in a row, or in an epoch that has taken fewer.
    """
    terms = ", ".join(f"{name} {value:.4g}" for name, value in outcome.terms.items())
    state = f"loss {outcome.loss:.4g} ({terms}), gradient norm {outcome.gradient_norm:.4g}"
    logger.warning("%s: step skipped, its loss or gradient is not finite: %s", where, state)
    skipped, taken = in_epoch
    if in_a_row > MAX_SKIPPED or skipped > max(MAX_SKIPPED, taken):
        steps = f"{in_a_row} steps in a row" if in_a_row > MAX_SKIPPED else f"{skipped} of {skipped + taken} steps"
        raise TrainingError(
            f"{steps} gave no finite loss and gradient; the last one, {where}: {state} · the training log names the "
            "pairs · a term that is not finite points at the images or labels of these pairs; if all are finite, plan "
            "with a smaller learning rate; the checkpoint of the last epoch, if one was done, holds finite weights"
        )
