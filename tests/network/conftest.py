"""Plans of tiny networks."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from biasreg.planning.plans import EncoderPlans, NetworkPlans

HEADS = (2, 4, 8, 16)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(20)


@pytest.fixture
def make_plans() -> Callable[..., NetworkPlans]:
    """Give a function that makes plans of a tiny network with `stages` stages and any fields replaced."""

    def make(stages: int = 1, family: str = "residual", strides: Any = None, **changes: Any) -> NetworkPlans:
        encoder = EncoderPlans(
            family=family,  # type: ignore[arg-type]
            init="scratch",
            tuning="full",
            lora=None,
            feature_size=4,
            depths=(2,) * stages if family == "swin" else (1,) * stages,
            heads=HEADS[:stages],
            window_size=2,
            strides=strides or ((2, 2, 2),) * (stages + 1),
        )
        plans = NetworkPlans(
            in_channels=1,
            num_labels=3,
            encoder=encoder,
            decoder_channels=(4, 4, 8, 8, 12, 16)[: stages + 2],
            registration_levels=2,
            segmentation_level=0,
            integration_steps=0,
            correlation_levels=(),
            streams="both",
            biaf=True,
            mac=True,
            checkpointing=False,
        )
        return replace(plans, **changes)

    return make
