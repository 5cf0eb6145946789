"""Plans of tiny networks."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from biasreg.network.encoder import SwinEncoder
from biasreg.planning.plans import EncoderPlans, LoraPlans, NetworkPlans
from biasreg.planning.voco import VOCO_ENCODERS, VocoEncoder

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


TINY_VOCO = VocoEncoder("VoCo-B", "VoCo_B_SSL_head.pt", 4, (2, 2), (2, 4), 2)


@pytest.fixture
def tiny_voco(monkeypatch: pytest.MonkeyPatch) -> VocoEncoder:
    """Let VoCo-B be a tiny encoder."""
    monkeypatch.setitem(VOCO_ENCODERS, "voco_b", TINY_VOCO)
    return TINY_VOCO


@pytest.fixture
def make_encoder(tiny_voco: VocoEncoder) -> Callable[..., SwinEncoder]:
    """Give a function that makes a tiny VoCo encoder."""

    def make(in_channels: int = 1) -> SwinEncoder:
        return SwinEncoder(in_channels, tiny_voco.feature_size, tiny_voco.depths, tiny_voco.heads, 2)

    return make


@pytest.fixture
def make_voco_plans(make_plans: Callable[..., NetworkPlans], tiny_voco: VocoEncoder) -> Callable[..., NetworkPlans]:
    """Give a function that makes plans with a tiny VoCo encoder."""

    def make(tuning: str = "lora", *, mlp: bool = True, **changes: Any) -> NetworkPlans:
        plans = make_plans(2, "swin", **changes)
        lora = LoraPlans(2, 4.0, mlp) if tuning == "lora" else None
        encoder = replace(plans.encoder, init="voco_b", tuning=tuning, lora=lora)  # type: ignore[arg-type]
        return replace(plans, encoder=encoder)

    return make
