"""The rules of the encoder: which one, where its weights start, and what of it trains."""

from typing import Literal, NamedTuple, cast, get_args

from biasreg.core.errors import PlansError
from biasreg.planning.decision import Decision
from biasreg.planning.grid_rules import Layout
from biasreg.planning.network_rules import Device, Width
from biasreg.planning.plans import EncoderFamily, EncoderInit, EncoderPlans, LoraPlans
from biasreg.planning.voco import VOCO_ENCODERS, remedy, titles

EncoderChoice = Literal["auto", "voco_b", "voco_l", "voco_h", "swin", "residual"]
ENCODERS: tuple[EncoderChoice, ...] = get_args(EncoderChoice)

# Of an encoder without pretrained weights: on Dataset501 Swin and residual pyramid reached the same validation Dice
# after 500 steps (0.836 and 0.835), and a step of Swin took 1.09 times as long (documentation/explanation/method.md).
SCRATCH_FAMILY: EncoderFamily = "residual"
AUTOMATIC: EncoderInit = "voco_b"  # the encoder of the paper
# The paper does not publish rank and scale of its adapters. Hu et al. (LoRA, arXiv:2106.09685) find small ranks enough.
LORA_RANK, LORA_ALPHA = 8, 8.0
VOCO_MODALITY = "CT"  # what VoCo was trained on
NOT_INSTALLED = f"NO WEIGHTS OF {VOCO_ENCODERS[AUTOMATIC].title} ARE INSTALLED"  # loud: the paper's method has them


class EncoderWish(NamedTuple):
    """What the encoder is chosen by, besides its width and the grid.

    Attributes:
        choice: What the user wants: an encoder by name, or `auto` for what the rules give.
        installed: Names of the VoCo encoders that are installed.
        device: Device that will train.
        modality: Modality of the images.
    """

    choice: EncoderChoice
    installed: tuple[str, ...]
    device: Device
    modality: str


def check_choice(wish: EncoderWish) -> None:
    """Refuse a VoCo encoder that the user names, where no grid at all could make it possible.

    Args:
        wish: What the encoder is chosen by.

    Raises:
        PlansError: Its weights are not installed, or the plans are for a CPU.
    """
    if wish.choice not in VOCO_ENCODERS:
        return
    title = VOCO_ENCODERS[wish.choice].title
    if wish.choice not in wish.installed:
        there = f"installed: {titles(wish.installed)}" if wish.installed else "none is installed"
        raise PlansError(
            f"--encoder {wish.choice}, but its weights are not installed ({there}) · {remedy(wish.choice)}"
        )
    if wish.device == "cpu":
        raise PlansError(
            f"--encoder {wish.choice}, but a step of {title} takes minutes on a CPU · plan for a GPU with "
            "-gpu_memory_target, or leave --encoder out"
        )


def choose_encoder(width: Width, layout: Layout, wish: EncoderWish) -> Decision[EncoderPlans]:
    """Choose the encoder.

    Args:
        width: How wide it is.
        layout: The grid and its pyramid.
        wish: What it is chosen by, besides.

    Returns:
        VoCo's with adapters where its weights are installed and width and pyramid are its own; else one from scratch.

    Raises:
        PlansError: The user names an encoder that this pyramid does not allow.
    """
    if wish.choice in VOCO_ENCODERS:
        fault = _voco_fault(wish.choice, width, layout)
        if fault:
            raise PlansError(f"--encoder {wish.choice}, but {fault} · {_remedy(layout)}")
        return _pretrained(cast(EncoderInit, wish.choice), layout, wish.modality)
    obstacle = _obstacle(width, layout, wish) if wish.choice == "auto" else "asked for"
    if obstacle is None:
        return _pretrained(AUTOMATIC, layout, wish.modality)
    return _scratch(width, layout, wish.choice, obstacle)


def _pretrained(init: EncoderInit, layout: Layout, modality: str) -> Decision[EncoderPlans]:
    voco = VOCO_ENCODERS[init]
    is_far = modality != VOCO_MODALITY
    plans = EncoderPlans(
        family="swin",
        init=init,
        tuning="lora",
        lora=LoraPlans(LORA_RANK, LORA_ALPHA, mlp=is_far),
        feature_size=voco.feature_size,
        depths=voco.depths,
        heads=voco.heads,
        window_size=voco.window_size,
        strides=layout.strides,
    )
    where = f", and in its MLPs, for {modality} is not the {VOCO_MODALITY} that it has seen" if is_far else ""
    why = f"{voco.title} is installed: its weights are kept, adapters of rank {LORA_RANK} train in its attention{where}"
    return Decision(plans, why)


def _scratch(width: Width, layout: Layout, choice: EncoderChoice, reason: str) -> Decision[EncoderPlans]:
    family: EncoderFamily = "swin" if choice == "swin" else SCRATCH_FAMILY
    if family == "swin" and not layout.is_isotropic:
        raise PlansError(f"--encoder swin, but {_HALVES_ALIKE} · {_remedy(layout)}")
    why = f"{reason}: {_NAMES[family]} from scratch; {width.name}"
    stages = len(layout.strides) - 1
    plans = EncoderPlans(
        family=family,
        init="scratch",
        tuning="full",
        lora=None,
        feature_size=width.feature_size,
        depths=(width.blocks,) * stages,
        heads=tuple(3 * 2**stage for stage in range(stages)),
        window_size=width.window_size,
        strides=layout.strides,
    )
    return Decision(plans, why)


_NAMES = {"swin": "a Swin encoder", "residual": "a residual pyramid"}
_HALVES_ALIKE = "a Swin encoder halves all axes at once, and this grid halves long or short ones less often"


def _obstacle(width: Width, layout: Layout, wish: EncoderWish) -> str | None:
    """Say what keeps the paper's encoder from being used by itself, if anything does."""
    if wish.device == "cpu":
        return f"on a CPU a step of {VOCO_ENCODERS[AUTOMATIC].title} takes minutes"
    fault = _voco_fault(AUTOMATIC, width, layout)
    return fault if fault or AUTOMATIC in wish.installed else _not_installed(wish.installed)


def _voco_fault(init: str, width: Width, layout: Layout) -> str | None:
    """Say what keeps a VoCo encoder from being used, if anything does."""
    voco = VOCO_ENCODERS[init]
    if not layout.is_isotropic:
        return _HALVES_ALIKE
    if len(layout.strides) != len(voco.depths) + 1:
        return f"{voco.title} halves a grid {len(voco.depths) + 1} times, and this one allows {len(layout.strides)}"
    if width.feature_size != voco.feature_size:
        return f"the memory does not hold {voco.title}'s width on this grid"
    return None


def _not_installed(installed: tuple[str, ...]) -> str:
    others = f" ({titles(installed)} would be taken by --encoder {installed[0]})" if installed else ""
    return f"{NOT_INSTALLED}{others}, get them by `biasreg_install_pretrained {AUTOMATIC}`"


def _remedy(layout: Layout) -> str:
    grid = "finer" if layout.is_isotropic else "isotropic"
    return f"plan {grid} voxels with -overwrite_target_spacing, or leave --encoder out"
