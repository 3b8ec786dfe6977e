"""What Paddle and PyTorch do not spell alike."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

Tensor = Any  # paddle.Tensor or torch.Tensor: the library uses the methods that both have

HEAD_DIMS = (64, 128, 256)  # that the attention kernels take


def namespace(x: Tensor) -> ModuleType:
    """``paddle`` or ``torch``, whichever made ``x``."""
    return sys.modules[type(x).__module__.partition(".")[0]]


def matmul_nt(a: Tensor, b: Tensor) -> Tensor:
    """``a @ bᵀ`` over the last two axes. Paddle would copy a transposed view before the product."""
    ns = namespace(a)
    return ns.matmul(a, b, transpose_y=True) if ns.__name__ == "paddle" else a @ b.mT


def lookup(table: Tensor, rows: Tensor) -> Tensor:
    """``table[rows]``, of int32 ``rows [n]``: by Paddle's fastest way on a CPU."""
    ns = namespace(table)
    return ns.gather(table, rows) if ns.__name__ == "paddle" else table[rows]


def integers(values: list[int] | Tensor, dtype: Any, like: Tensor) -> Tensor:
    """A few numbers on ``like``'s device. The host does not wait until they are there.

    With Paddle it does, unless they are all the same, which takes no copy.
    """
    ns = namespace(like)
    if isinstance(values, type(like)):
        return values.to(dtype)
    flat = isinstance(values, list) and all(isinstance(value, int) for value in values)
    if flat and len(set(values)) == 1:
        return ns.full((len(values),), values[0], dtype=dtype, device=like.device)
    if ns.__name__ == "paddle":
        return ns.to_tensor(values, dtype=dtype, place=like.place)
    return ns.tensor(values, dtype=dtype).to(like.device, non_blocking=True)
