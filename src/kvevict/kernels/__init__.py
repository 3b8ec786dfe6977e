"""Triton kernels for long prompts on a GPU, for PyTorch and for Paddle tensors.

Importing this needs Triton 3.4 or newer. Nothing here waits for the device.
"""

from __future__ import annotations

from .columns import column_statistic
from .decode import append, count_chunks, decode_attention
from .projection import quadratic_norms
from .selection import positions, take, top_k, uniform

__all__ = [
    "append",
    "column_statistic",
    "count_chunks",
    "decode_attention",
    "positions",
    "quadratic_norms",
    "take",
    "top_k",
    "uniform",
]
