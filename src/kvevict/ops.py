"""Operations that have a GPU kernel: the one place that picks it or the framework's own."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from functools import lru_cache
from importlib.util import find_spec
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Callable

from .tensors import HEAD_DIMS, Tensor, integers, namespace

FEW_ROWS = 8  # of a product whose time is that of its weights
FP8 = (8, 9)  # compute capability that reads e4m3


@lru_cache(maxsize=1)
def has_triton() -> bool:
    """Whether the Triton kernels can be used; says so where only a C compiler is missing.

    They need the tensor descriptors of Triton 3.4, and Triton builds a launcher for each, in C,
    on the machine that runs them; its interpreter needs none.
    """
    if not (find_spec("triton") and find_spec("triton.tools.tensor_descriptor")):
        return False
    if os.environ.get("TRITON_INTERPRET") == "1" or _builds_c():
        return True
    print(
        "no C compiler or no Python.h, which Triton needs (Debian and Ubuntu: gcc, python3-dev): "
        "going on without its kernels, slower",
        file=sys.stderr,
    )
    return False


def _builds_c() -> bool:
    """Whether Triton will find what it builds with, where it looks."""
    compiler = shutil.which(os.environ.get("CC") or "gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_path("include", "posix_prefix"), "Python.h")
    return compiler is not None and headers.is_file()


def kernels(x: Tensor) -> ModuleType | None:
    """The kernels where they may take ``x``; None where the framework's operations have to."""
    if not (x.is_cuda and has_triton()):
        return None
    from . import kernels

    return kernels


def flash_applies(q: Tensor) -> bool:
    """Whether ``q`` is of a kind and in a place that flash attention takes."""
    ns = namespace(q)
    fits = q.is_cuda and q.dtype in (ns.float16, ns.bfloat16) and q.shape[-1] in HEAD_DIMS
    return fits and compute_capability(ns.__name__) >= (8, 0)


def attention_kernels(q: Tensor) -> ModuleType | None:
    """The kernels where those that work on queries, keys and values may take ``q``."""
    return kernels(q) if flash_applies(q) else None


def row_kernels(x: Tensor) -> ModuleType | None:
    """The kernels where theirs are the products of as few rows as ``x [..., width]`` has."""
    ns = namespace(x)
    fits = ns.__name__ == "torch" and x.is_cuda and x.dtype in (ns.float16, ns.bfloat16)
    if not fits or prod(x.shape[:-1]) > FEW_ROWS or compute_capability("torch") < (8, 0):
        return None
    return kernels(x)


def decode_kernels(q: Tensor, kv_dtype: str | None) -> ModuleType | None:
    """The kernels where that of decoding may take ``q`` over a cache of this type.

    Args:
        kv_dtype: what the cache is quantised to, of :data:`kvevict.quantised.KV_DTYPES`, or None.
    """
    gpu = attention_kernels(q)
    return gpu if gpu and reads(kv_dtype, namespace(q).__name__) else None


@lru_cache
def reads(kv_dtype: str | None, framework: str) -> bool:
    """Whether the kernels read such a cache on the GPU there is; where they do not, says so."""
    if kv_dtype in (None, "int8") or (kv_dtype == "fp8" and compute_capability(framework) >= FP8):
        return True
    print(f"a cache in {kv_dtype} is attended to without a kernel here, slower", file=sys.stderr)
    return False


@lru_cache
def compute_capability(framework: str) -> tuple[int, int]:
    """Compute capability of the current GPU, NVIDIA's; (0, 0) of another maker's."""
    if framework == "torch":
        import torch

        return (0, 0) if torch.version.hip else torch.cuda.get_device_capability()
    import paddle

    if paddle.is_compiled_with_rocm():
        return (0, 0)
    return tuple(paddle.device.cuda.get_device_capability())


def top_k(scores: Tensor, counts: list[int] | Tensor) -> Tensor:
    """Mark the ``counts[h]`` largest scores of each row h; ties go to the lower position.

    Args:
        scores: ``[rows, n]``, without NaN.
        counts: ``[rows]``; as a tensor where the host does not know them.

    Returns:
        bool ``[rows, n]``.
    """
    if gpu := kernels(scores):
        return gpu.top_k(scores, counts)
    ns = namespace(scores)
    most = max(counts) if isinstance(counts, list) else int(counts.max())
    if most == 0:
        return scores != scores
    wanted = integers(counts, ns.int64, like=scores).unsqueeze(-1)
    last = (wanted - 1).clamp(min=0)
    if scores.is_cuda:  # Paddle's topk of so many may reduce a row anew for each
        order = scores.argsort(descending=True)
        threshold = ns.take_along_dim(scores, ns.take_along_dim(order, last, dim=-1), dim=-1)
    else:
        threshold = ns.take_along_dim(scores.topk(most, dim=-1)[0], last, dim=-1)
    above = (scores > threshold) & (wanted > 0)
    # Not "==": what differs by less than 1e-8 is equal to Paddle.
    ties = (scores >= threshold) & (wanted > 0) & ~above
    free = wanted - above.to(ns.int64).sum(dim=-1, keepdim=True)
    return above | (ties & (ties.to(ns.int64).cumsum(dim=-1) <= free))


def nonzero(mask: Tensor, total: int) -> Tensor:
    """The indices of the ``total`` entries of bool ``mask [n]`` that are set, ascending."""
    if gpu := kernels(mask):
        return gpu.positions(mask, total)
    return mask.nonzero().reshape(-1)


def take(keys: Tensor, values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of ``keys`` and ``values``, both ``[entries, head_dim]``."""
    if gpu := kernels(keys):
        return gpu.take(keys, values, rows)
    return keys.index_select(0, rows), values.index_select(0, rows)


def reuse(mask: Tensor, rows: Tensor, slots: Tensor, staying: Tensor) -> Tensor:
    """Where those that are kept of some held and some new lie, ``[kept]``.

    Args:
        mask: bool ``[held + new]``, what is kept: no fewer than were held.
        rows: where it is set, ascending.
        slots: where those held lie, in some order the first places.
        staying: ``[1]``, how many of them are kept.

    Returns:
        The slots of those that stay; then, for the new ones, what was never used and what was left.
    """
    ns, held, kept = namespace(mask), slots.shape[0], rows.shape[0]
    if not held:
        return ns.arange(kept, dtype=slots.dtype, device=mask.device)
    if gpu := kernels(mask):
        return gpu.reuse(mask, rows, slots, staying)
    unused = ns.arange(held, kept, dtype=slots.dtype, device=mask.device)
    left = slots.masked_select(~mask[:held])
    return ns.cat([slots.index_select(0, rows[: staying.item()]), unused, left], dim=0)


def put(held: Tensor, new: Tensor, rows: Tensor, slots: Tensor, count: int) -> None:
    """``held[slots[i]] = new[rows[i] - count]`` for the rows from ``count`` on.

    Args:
        held, new: ``[entries, …]``.
        rows: ascending.
    """
    if gpu := kernels(held):
        gpu.put(held, new, rows, slots, count)
        return
    first = int((rows < count).sum())
    if first < rows.shape[0]:
        held[slots[first:]] = new.index_select(0, rows[first:] - count)


def uniform(keys: list[int] | Callable[[Tensor], Tensor], length: int, like: Tensor) -> Tensor:
    """Hashed numbers in (0, 1), float32 ``[len(keys), length]``: see :mod:`kvevict.noise`.

    The multipliers are below 2³¹, so that 32-bit words in int64 never overflow.

    Args:
        keys: numbers below 2³², or what makes them int64 ``[keys]`` where a tensor lies.
    """
    ns = namespace(like)
    seeds = keys(like) if callable(keys) else integers(keys, ns.int64, like)
    if gpu := kernels(like):
        return gpu.uniform(seeds, length)

    def constant(value: int) -> Tensor:
        return ns.full((1,), value, dtype=ns.int64, device=like.device)

    low_word = constant(0xFFFFFFFF)
    x = seeds.unsqueeze(-1) ^ ns.arange(length, dtype=ns.int64, device=like.device)
    x = x ^ x // 2**16
    x = x * constant(0x7FEB352D) & low_word
    x = x ^ x // 2**15
    x = x * constant(0x45D9F3B) & low_word
    x = x ^ x // 2**16
    return ((x // 2**9).to(ns.float32) + 0.5) * 2.0**-23
