"""Where networks run, and in which precision."""

from contextlib import AbstractContextManager, nullcontext

import torch

from biasreg.core.errors import InputError


def select_device(name: str | None = None) -> torch.device:
    """Return the device that was asked for, or the best there is: CUDA, then MPS, then the CPU.

    Raises:
        InputError: If the device that was asked for is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name is None:
        return torch.device(next(kind for kind, there in available.items() if there))
    kind = name.split(":")[0]
    if not available.get(kind, False):
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise InputError(
            f"device '{name}' is not available here; there is: {there} · leave -device out to take the best"
        )
    return torch.device(name)


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """Compute in bfloat16 where that is faster and safe (CUDA since Ampere), otherwise in float32."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()
