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
    try:
        device = torch.device(name)
    except RuntimeError:  # no device of torch's has such a name
        device = None
    if device is None or not available.get(device.type, False) or (device.index or 0) >= _count(device.type):
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise InputError(
            f"device '{name}' is not available here; there is: {there} · leave -device out to take the best"
        )
    return device


def _count(kind: str) -> int:
    return torch.cuda.device_count() if kind == "cuda" else 1


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error means that a device's memory was too small; only CUDA has a class for it.

    Args:
        error: What torch raised.

    Returns:
        Whether its text is that of an allocator: on CPU "can't allocate memory", elsewhere "out of memory".
    """
    is_cuda = isinstance(error, torch.cuda.OutOfMemoryError)
    return is_cuda or any(phrase in str(error) for phrase in ("can't allocate memory", "out of memory"))


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """Compute in bfloat16 where that is faster and safe (CUDA since Ampere), otherwise in float32."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()
