"""Triton kernels for long prompts on a GPU, for PyTorch and for Paddle tensors.

Importing this needs Triton 3.4 or newer. Nothing here waits for the device.
"""

from __future__ import annotations

from .columns import column_statistic
from .decode import decode_attention
from .flash import flash_forward
from .selection import gather, gather_ragged, ragged_positions, select

__all__ = [
    "column_statistic",
    "decode_attention",
    "flash_forward",
    "gather",
    "gather_ragged",
    "ragged_positions",
    "select",
]
