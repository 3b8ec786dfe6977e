"""Paddle's devices."""

from __future__ import annotations

import paddle

from kvevict.errors import InputError


def use_device(device: str | None) -> str:
    """Find and make current what `device` names, in Paddle's words: "cpu", "gpu" or "gpu:1"."""
    try:
        if device is not None:
            paddle.set_device(device)
        return paddle.get_device()
    except Exception as error:  # Paddle raises several kinds, over many lines
        why = f"it finds {paddle.device.cuda.device_count()} GPUs"
        if not paddle.is_compiled_with_cuda():
            why = "this is its CPU build; setup.sh takes the GPU build where nvidia-smi works"
        raise InputError(f"Paddle cannot use device {device or 'gpu'!r}: {why}") from error


def device_name(device: str) -> str:
    """ "cpu", or the GPU's name."""
    return paddle.device.cuda.get_device_name() if device.startswith("gpu") else device


def choose_dtype(wanted: str | None, device: str) -> str:
    """By default float32 on the CPU; on a GPU bfloat16 where it has that, else float16."""
    if device.startswith("gpu"):
        return wanted or ("bfloat16" if paddle.amp.is_bfloat16_supported() else "float16")
    if wanted not in (None, "float32"):
        raise InputError(f"Paddle computes in float32 on a CPU, not in {wanted}")
    return "float32"


def peak_device_bytes() -> int | None:
    """Most memory that Paddle has allocated on the current GPU, in bytes; None on a CPU."""
    if not paddle.get_device().startswith("gpu"):
        return None
    return paddle.device.cuda.max_memory_allocated()
