"""Triton, imported so that kernels launch on tensors of whichever framework is in use.

Triton asks a module called ``torch`` for the device and its current stream. In a process that has
Paddle and not PyTorch, Paddle's compatibility layer (``paddle.enable_compat``, Paddle 3.3) answers
under that name, for Triton alone.
"""

from __future__ import annotations

import sys
from functools import lru_cache

from ..errors import InputError
from ..tensors import HEAD_DIMS, Tensor, namespace

if "paddle" in sys.modules and "torch" not in sys.modules:
    sys.modules["paddle"].enable_compat(scope={"triton"}, silent=True)

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

LOG2_E = 1.4426950408889634
EARLY = True  # kernels of a decoded token begin while the last one ends, where the GPU can

__all__ = [
    "HEAD_DIMS",
    "LOG2_E",
    "await_last",
    "check_heads",
    "early",
    "row_major",
    "tiles",
    "tl",
    "triton",
]


def early(x: Tensor) -> dict[str, bool]:
    """Options of a launch that may begin before the last kernel's end, see :func:`await_last`."""
    if not (EARLY and namespace(x).__name__ == "torch" and _has_dependent_launches()):
        return {"PDL": False}
    return {"PDL": True, "launch_pdl": True}


@lru_cache
def _has_dependent_launches() -> bool:
    if not isinstance(await_last, triton.JITFunction):
        return False  # the interpreter
    target = triton.runtime.driver.active.get_current_target()
    return target.backend == "cuda" and target.arch >= 90


@triton.jit
def await_last(PDL: tl.constexpr):
    """Let the next kernel begin, and wait for all that the last one wrote.

    Before this a kernel may read what no kernel writes, such as weights, and write nothing.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


class Tiles(TensorDescriptor):
    """Descriptor of bulk copies, without a check that asks Paddle's dtypes for what they lack."""

    def __post_init__(self) -> None:
        pass


def tiles(x: Tensor, rows: int) -> Tiles:
    """``[batch, heads, tokens, head_dim]`` in tiles of ``rows`` tokens of one head."""
    return Tiles(x, list(x.shape), list(x.stride()), [1, 1, rows, x.shape[-1]])


def row_major(x: Tensor) -> Tensor:
    """``x`` itself if its rows are contiguous and 16-byte aligned; otherwise a copy."""
    *strides, last = x.stride()
    return x if last == 1 and all(stride % 8 == 0 for stride in strides) else x.contiguous()


def check_heads(q: Tensor, k: Tensor) -> None:
    """Raise InputError unless the kernels can take these queries and keys together."""
    head_dim = q.shape[-1]
    if head_dim not in HEAD_DIMS or k.shape[-1] != head_dim:
        raise InputError(
            f"the Triton kernels need queries and keys of one head_dim, 64, 128 or 256, "
            f"not {head_dim} and {k.shape[-1]}"
        )
    if q.shape[1] % k.shape[1]:
        raise InputError(f"{q.shape[1]} query heads cannot share {k.shape[1]} kv heads evenly")
    if q.dtype != k.dtype or q.element_size() != 2:
        raise InputError(
            f"the Triton kernels need bfloat16 or float16 throughout, not {q.dtype} and {k.dtype}"
        )
