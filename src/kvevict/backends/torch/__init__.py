"""PyTorch, with the models of transformers: see :class:`kvevict.backends.Backend`."""

from __future__ import annotations

import torch

from ...environment import cpu_threads

torch.set_num_threads(cpu_threads())

from .build import build
from .decoder import TorchDecoder as decoder
from .device import (
    choose_dtype,
    device_name,
    peak_device_bytes,
    use_device,
)
from .generate import evict

__all__ = [
    "build",
    "choose_dtype",
    "decoder",
    "device_name",
    "evict",
    "peak_device_bytes",
    "use_device",
]
