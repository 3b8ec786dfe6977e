"""Rotary positions applied to vectors, and taken off again.

Tables are cosines and sines ``[…, head_dim]``, the sines with the sign of the half that they stand
in: dimension i turns with i + head_dim / 2. None is no rotation at all.
"""

from __future__ import annotations

from typing import Optional

from .tensors import Tensor

Tables = Optional[tuple]  # cosines and signed sines


def rotate(x: Tensor, tables: Tables) -> Tensor:
    """``x [..., head_dim]`` with RoPE; of averaged tables, its average over their positions."""
    if tables is None:
        return x
    cos, sin = tables
    return x * cos + _swapped(x) * sin


def unrotate(x: Tensor, tables: Tables) -> Tensor:
    """What :func:`rotate` made ``x`` of, also where the tables have a scale, as YaRN's do."""
    if tables is None:
        return x
    cos, sin = tables
    return (x * cos - _swapped(x) * sin) / (cos * cos + sin * sin)


def _swapped(x: Tensor) -> Tensor:
    """Halves in each other's place."""
    return x.roll(x.shape[-1] // 2, -1)
