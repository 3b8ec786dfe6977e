"""What Paddle and PyTorch do not spell alike, and whether the GPU kernels can be used."""

from __future__ import annotations

import sys
from functools import lru_cache
from importlib.util import find_spec
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


def integers(values: list[int], dtype: Any, like: Tensor) -> Tensor:
    """A few numbers on ``like``'s device. The host does not wait until they are there."""
    ns = namespace(like)
    if ns.__name__ == "paddle":
        return ns.to_tensor(values, dtype=dtype, place=like.place)
    return ns.tensor(values, dtype=dtype).to(like.device, non_blocking=True)


@lru_cache(maxsize=1)
def has_triton() -> bool:
    """Whether the Triton kernels can be used: they need the tensor descriptors of Triton 3.4."""
    return bool(find_spec("triton") and find_spec("triton.tools.tensor_descriptor"))


def has_kernels(x: Tensor) -> bool:
    """Whether kernels may take ``x`` instead of many small operations."""
    return x.is_cuda and has_triton()
