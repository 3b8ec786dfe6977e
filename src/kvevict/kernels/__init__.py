"""Triton kernels for long prompts on a GPU, for PyTorch and for Paddle tensors.

Importing this needs Triton 3.4 or newer. Nothing here waits for the device.
"""

from __future__ import annotations

from .chunks import Chunks, count_chunks
from .columns import column_statistic
from .decode import decode_attention
from .layer import add_rms_norm, append, gated, rms_norm, turn, turn_and_append
from .lending import neighbours
from .moving import put, reuse
from .products import Norm, gated_linear, linear
from .projection import projected_norms
from .selection import positions, take, top_k, uniform

__all__ = [
    "Chunks",
    "Norm",
    "add_rms_norm",
    "append",
    "column_statistic",
    "count_chunks",
    "decode_attention",
    "gated",
    "gated_linear",
    "linear",
    "neighbours",
    "positions",
    "projected_norms",
    "put",
    "reuse",
    "rms_norm",
    "take",
    "top_k",
    "turn",
    "turn_and_append",
    "uniform",
]
