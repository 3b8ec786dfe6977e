"""PyTorch's devices."""

from __future__ import annotations

import torch

from kvevict.environment import local_gpu
from kvevict.errors import InputError


def use_device(device: str | None) -> torch.device:
    """Find and make current what `device` names: "cpu", "gpu" or "gpu:1".

    "gpu", and the default where there is one, is the GPU that a launcher gave this process; of more
    processes than GPUs, several share one.
    """
    if device is None:
        device = "gpu" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return torch.device("cpu")
    _, named, number = device.partition(":")
    number = int(number) if named else local_gpu() % max(1, torch.cuda.device_count())
    if number >= torch.cuda.device_count():
        raise InputError(
            f"PyTorch cannot use device {device!r}: it finds {torch.cuda.device_count()} GPUs"
        )
    found = torch.device("cuda", number)
    torch.cuda.set_device(found)  # kernels launch on the current one
    return found


def device_name(device: torch.device) -> str:
    """ "cpu", or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def choose_dtype(wanted: str | None, device: torch.device) -> str:
    """By default float32 on the CPU; on a GPU bfloat16 where it has that, else float16."""
    if wanted or device.type == "cpu":
        return wanted or "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def peak_device_bytes() -> int | None:
    """Most memory that PyTorch has allocated on the current GPU, in bytes; None on a CPU."""
    return torch.cuda.max_memory_allocated() or None
