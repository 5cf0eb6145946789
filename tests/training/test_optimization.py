import logging
import math

import pytest
import torch
from torch import nn

from biasreg.core.errors import TrainingError
from biasreg.losses.objective import Terms
from biasreg.training.optimization import (
    MAX_SKIPPED,
    StepOutcome,
    build_optimizer,
    check_skipped,
    polynomial_rate,
    set_learning_rate,
    take_step,
    warmup_scale,
)


def make_terms(total):
    return Terms(total=total, terms={"similarity": total.detach()}, displacement=torch.zeros(1, 3, 2, 2, 2))


def test_polynomial_rate_starts_at_the_start_and_ends_at_zero():
    assert polynomial_rate(0, 100, 1e-3, 0.9) == 1e-3
    assert polynomial_rate(100, 100, 1e-3, 0.9) == 0
    assert polynomial_rate(50, 100, 1e-3, 1.0) == pytest.approx(5e-4)


def test_warmup_rises_linearly_to_one():
    assert [warmup_scale(step, 100, 0.1) for step in (0, 5, 10, 90)] == [0, 0.5, 1, 1]
    assert warmup_scale(0, 100, 0.0) == 1


def test_only_trained_parameters_are_optimised():
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    network[0].requires_grad_(False)
    optimizer = build_optimizer(network, 1e-3)
    assert [parameter.shape for parameter in optimizer.param_groups[0]["params"]] == [(1, 3), (1,)]
    set_learning_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_step_goes_down_the_gradient_and_reports_the_unclipped_norm():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    outcome = take_step(make_terms((weight**2).sum()), optimizer, clip=1.0)
    assert outcome.taken
    assert outcome.loss == 25.0
    assert outcome.terms == {"similarity": 25.0}
    assert outcome.gradient_norm == pytest.approx(10.0)
    torch.testing.assert_close(weight.detach(), torch.tensor([2.4, 3.2]))  # a step of length 1


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_step_without_finite_loss_leaves_weights_and_optimiser_alone(factor):
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = build_optimizer(nn.ParameterList([weight]), 0.1)
    outcome = take_step(make_terms((weight * factor).sum()), optimizer, clip=1.0)
    assert not outcome.taken
    assert weight.item() == 3.0
    assert not optimizer.state


def test_a_finite_loss_with_infinite_gradient_is_skipped():
    weight = nn.Parameter(torch.tensor([0.0]))
    outcome = take_step(make_terms(weight.sqrt().sum()), torch.optim.SGD([weight], lr=1.0), clip=1.0)
    assert not outcome.taken
    assert weight.item() == 0.0


def test_skipped_steps_are_logged_with_their_pair_and_end_training_when_they_go_on(caplog):
    outcome = StepOutcome(False, float("nan"), float("nan"), {"similarity": float("nan"), "smoothness": 0.5})
    with caplog.at_level(logging.WARNING):
        check_skipped(outcome, MAX_SKIPPED, (MAX_SKIPPED, 0), "iteration 7, pair a -> b")
    assert "pair a -> b" in caplog.text
    with pytest.raises(TrainingError, match=r"21 steps in a row.*pair a -> b.*smoothness 0.5"):
        check_skipped(outcome, MAX_SKIPPED + 1, (1, 30), "iteration 8, pair a -> b")


def test_of_a_step_that_is_not_taken_the_pairs_are_known():
    weight = nn.Parameter(torch.tensor([1.0]))
    terms = make_terms(weight.sum() * float("nan"))
    pairs = ({"similarity": torch.tensor(0.5)}, {"similarity": torch.tensor(0.5), "overlap": torch.tensor(math.inf)})
    outcome = take_step(terms._replace(pairs=pairs), torch.optim.SGD([weight], lr=1.0), clip=1.0)
    assert (outcome.taken, outcome.suspects) == (False, (1,))


def test_an_epoch_that_skips_more_steps_than_it_takes_ends_training(caplog):
    outcome = StepOutcome(False, float("nan"), float("nan"), {"similarity": float("nan")})
    check_skipped(outcome, 9, (30, 30), "iteration 60, pair a -> b")
    with pytest.raises(TrainingError, match=r"^31 of 61 steps gave no finite loss.*iteration 61, pair a -> b"):
        check_skipped(outcome, 9, (31, 30), "iteration 61, pair a -> b")
