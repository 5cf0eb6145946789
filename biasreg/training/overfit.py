"""The last question of the self-check: does a new network learn one pair in a few steps?"""

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from biasreg.losses.objective import PairBatch, objective
from biasreg.network.device import autocast
from biasreg.planning.pairing import Pair
from biasreg.planning.plans import Configuration
from biasreg.training.check_lines import CheckLine
from biasreg.training.data import CaseSource, to_device
from biasreg.training.optimization import build_optimizer, take_step
from biasreg.training.self_check import MAX_PAIRS, SEED
from biasreg.training.step_memory import objective_settings
from biasreg.training.workspace import FoldData

NAME = "one pair"
STEPS, SECONDS = 20, 30.0  # at most, whichever comes first
LEAST_STEPS = 5  # fewer cannot be judged
# Relative; 20 steps at learning rate 1e-4 took 6 % off the loss of hippocampi without labels, 7 steps 24 % with them.
LEAST_FALL = 0.01


def check_learning(source: CaseSource, data: FoldData, network: nn.Module, configuration: Configuration) -> CheckLine:
    """Train a network on one training pair, without augmentation, for 20 steps or half a minute.

    The random state of torch is left as it was.

    Args:
        source: Where cases are read from.
        data: Cases and pairs of the fold.
        network: A new network, on the device to train on.
        configuration: What is trained.

    Returns:
        The verdict; see `judge_losses`.
    """
    rng = np.random.default_rng(SEED)
    drawn = [data.sampler.draw(rng) for _ in range(MAX_PAIRS)]
    pair = next((pair for pair in drawn if all(data.annotated[case] for case in pair)), drawn[0])
    device = next(network.parameters()).device
    batch = to_device(source.batch((pair,)), device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(SEED)
        try:
            return judge_losses(learn(network, batch, configuration), pair)
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()


def learn(network: nn.Module, batch: PairBatch, configuration: Configuration) -> list[float]:
    """Train a network on one pair, each step with the same loss.

    Args:
        network: On the batch's device.
        batch: The pair, on the device to train on.
        configuration: What is trained.

    Returns:
        The total loss of each step; the last one is not finite if the loss or its gradient was not.
    """
    device = batch.moving.device
    optimizer = build_optimizer(network, configuration.training.learning_rate)
    settings = objective_settings(configuration)
    losses: list[float] = []
    started = time.perf_counter()
    while len(losses) < STEPS and time.perf_counter() - started < SECONDS:
        with autocast(device):
            generators = [torch.Generator().manual_seed(SEED)]  # the same labels in each step
            terms = objective(network, batch, settings, consistency_scale=1.0, generators=generators)
        outcome = take_step(terms, optimizer, configuration.training.gradient_clip)
        losses.append(outcome.loss if outcome.taken else math.nan)
        if not outcome.taken:
            break
    return losses


def judge_losses(losses: Sequence[float], pair: Pair) -> CheckLine:
    """Judge the course of the loss.

    Args:
        losses: The total loss of each step, at least one.
        pair: (moving, fixed) case identifiers.

    Returns:
        FAIL if a loss or gradient was not finite, WARN if the loss did not fall or there was no time to see it.
    """
    where = f"{pair[0]} -> {pair[1]}"
    if not all(map(math.isfinite, losses)):
        text = f"loss or gradient is not finite in step {len(losses)} on {where} · look at its images and labels; "
        return CheckLine(NAME, "FAIL", text + "plan with a smaller learning rate")
    text = f"the loss of {where} goes from {losses[0]:.4f} to {losses[-1]:.4f} in {len(losses)} steps"
    if len(losses) < LEAST_STEPS:
        return CheckLine(
            NAME, "WARN", f"{text} · too few to judge; this device needs more than {SECONDS:.0f} s for more"
        )
    if losses[-1] > losses[0] - LEAST_FALL * abs(losses[0]):
        return CheckLine(NAME, "WARN", f"{text}: it does not fall · is the learning rate too small or too large?")
    return CheckLine(NAME, "PASS", text)
