"""Operations that have a GPU kernel: the one place that picks it or the framework's own."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Callable

from .tensors import HEAD_DIMS, Tensor, integers, namespace

CHUNK = 4096  # entries whose projected values are held at a time
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


def take_joined(x: Tensor, more: Tensor, rows: Tensor) -> Tensor:
    """``cat([x, more])[rows]`` without the joint tensor.

    Args:
        x, more: ``[entries, …]``, any number of either.
        rows: ascending.
    """
    if gpu := kernels(x):
        return gpu.take_joined(x, more, rows)
    ns, held = namespace(x), x.shape[0]
    first = int((rows < held).sum())
    parts = [x.index_select(0, rows[:first])] if first else []
    if first < rows.shape[0]:
        parts.append(more.index_select(0, rows[first:] - held))
    return parts[0] if len(parts) == 1 else ns.cat(parts, dim=0)


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


def neighbours(
    scores: Tensor,
    back: int,
    ahead: int,
    since: int = 0,
    until: int | None = None,
    tail: float = 0.0,
    plateau: float = 1.0,
    highest: bool = False,
) -> Tensor:
    """What neighbours lend each position: Σ_d, or max_d, s_{j-d} (1 + |d|/plateau)^-tail.

    Args:
        scores: float32 ``[..., n]``, not negative.
        back, ahead: d goes from ``-back`` to ``ahead``: a position lends so many before and behind.
        since, until: those before and from there on lend nothing; from there on they take nothing.
        highest: the highest share in place of the sum.
    """
    *lead, n = scores.shape
    until = n if until is None else until
    if gpu := kernels(scores):
        rows = scores.reshape(-1, n).contiguous()
        lent = gpu.neighbours(rows, back, ahead, since, until, tail, plateau, highest)
        return lent.reshape(*lead, n)
    ns, since = namespace(scores), min(since, until)
    before = scores.new_zeros((*lead, ahead + since))
    padded = ns.cat([before, scores[..., since:until], scores.new_zeros((*lead, back))], dim=-1)
    mixed = None
    for place, distance in enumerate(range(ahead, -back - 1, -1)):
        part = padded[..., place : place + until]
        part = part * (1 + abs(distance) / plateau) ** -tail if tail else part
        if mixed is not None:
            part = ns.maximum(mixed, part) if highest else mixed + part
        mixed = part
    return ns.cat([mixed, scores.new_zeros((*lead, n - until))], dim=-1)


def projected_l2(values: Tensor, w_o: Tensor) -> Tensor:
    """‖v_j W_O^g‖₂, float32 ``[kv_heads, group, N]``.

    ‖v W‖² = v (W Wᵀ) vᵀ: the Gram matrix is head_dim², so the hidden size drops out of the cost.

    Args:
        values: ``[kv_heads, N, head_dim]``.
        w_o: ``[kv_heads, group, head_dim, hidden]``.
    """
    w = w_o.float()
    gram = w @ w.swapaxes(-1, -2)
    if gpu := attention_kernels(values):
        return gpu.quadratic_norms(values, gram)

    def squares(part: Tensor) -> Tensor:
        v = part.float().unsqueeze(1)
        return (v @ gram * v).sum(dim=-1)

    return by_chunks(squares, values).clamp(min=0).sqrt()


def projected_l1(values: Tensor, w_o: Tensor) -> Tensor:
    """Σ_g ‖v_j W_O^g‖₁, float32 ``[kv_heads, N]``; shapes as for :func:`projected_l2`."""
    members = range(w_o.shape[1])
    return by_chunks(
        lambda v: sum((v @ w_o[:, member]).abs().float().sum(dim=-1) for member in members), values
    )


def by_chunks(f: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """``f(values)``, a number for each entry, some entries at a time: ``f`` may widen them.

    Args:
        values: ``[kv_heads, N, head_dim]``, or keys; N above 0.

    Returns:
        ``[..., N]``.
    """
    spans = range(0, values.shape[1], CHUNK)
    parts = [f(values[:, start : start + CHUNK]) for start in spans]
    return namespace(values).cat(parts, dim=-1)
