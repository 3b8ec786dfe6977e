"""The one thing that Paddle and PyTorch do not spell alike: where their functions live."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

Tensor = Any  # paddle.Tensor or torch.Tensor: the library uses the methods that both have


def namespace(x: Tensor) -> ModuleType:
    """``paddle`` or ``torch``, whichever made ``x``."""
    return sys.modules[type(x).__module__.partition(".")[0]]


def matmul_nt(a: Tensor, b: Tensor) -> Tensor:
    """``a @ bᵀ`` over the last two axes. Paddle would copy a transposed view before the product."""
    ns = namespace(a)
    return ns.matmul(a, b, transpose_y=True) if ns.__name__ == "paddle" else a @ b.mT
