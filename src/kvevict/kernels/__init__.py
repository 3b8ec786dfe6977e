"""Triton kernels for long prompts on a GPU, for PyTorch and for Paddle tensors.

Importing this needs Triton 3.4 or newer. Nothing here waits for the device.
"""

from __future__ import annotations

from .chunks import Chunks, count_chunks
from .columns import column_statistic
from .decode import decode_attention
from .layer import add_rms_norm, append, gated, rms_norm, turn, turn_and_append
from .neighbours import neighbours
from .projection import quadratic_norms
from .selection import positions, take, take_joined, top_k, uniform

__all__ = [
    "Chunks",
    "add_rms_norm",
    "append",
    "column_statistic",
    "count_chunks",
    "decode_attention",
    "gated",
    "neighbours",
    "positions",
    "quadratic_norms",
    "rms_norm",
    "take",
    "take_joined",
    "top_k",
    "turn",
    "turn_and_append",
    "uniform",
]
