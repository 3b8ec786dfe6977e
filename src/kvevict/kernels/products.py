"""Products of few rows by a model's weights, with what comes before and after them.

A decoded token's products take as long as their weights need from memory: what a launch waits for
at its ends is lost. The gate between two halves of a weight and the addition to what the product
joins are done by the same launch, and of one row the norm of the input: where the tensor cores take
several, it would hold up their loads. Sums are float32, and of one order.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..tensors import Tensor
from .layer import rms_norm
from .runtime import await_last, early, tl, triton


class Norm(NamedTuple):
    """An RMS norm of a product's input: x / √(mean(x²) + eps) · weight."""

    weight: Tensor
    eps: float


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm: Norm | None = None,
    added: Tensor | None = None,
) -> Tensor:
    """``added + norm(x) Wᵀ + bias``, rounded once.

    Args:
        x: ``[..., in]``, bfloat16 or float16, 1 to 16 rows in all; see ``kvevict.ops.FEW_ROWS``.
        weight: ``[out, in]``, contiguous.
        bias: ``[out]``.
        norm: what is done to ``x`` first.
        added: ``[..., out]``.
    """
    return _product(x, weight, weight.shape[0], bias, norm, added)


def gated_linear(x: Tensor, weight: Tensor, norm: Norm | None = None) -> Tensor:
    """silu(y₁) · y₂ with both halves of y = norm(x) Wᵀ, see :func:`linear`; ``[..., out / 2]``."""
    return _product(x, weight, weight.shape[0] // 2, None, norm, None, gated=True)


def _product(
    x: Tensor,
    weight: Tensor,
    n: int,
    bias: Tensor | None,
    norm: Norm | None,
    added: Tensor | None,
    gated: bool = False,
) -> Tensor:
    *shape, width = x.shape
    rows, x = math.prod(shape), x.contiguous()
    out = x.new_empty([*shape, n])
    added = x if added is None else added.contiguous()
    given = {"BIASED": bias is not None, "ADDED": added is not x, "GATED": gated, "WIDTH": width}
    options = {**given, **early(x), **_tile(rows, n, width)}
    grid = (triton.cdiv(n, options["N_BLOCK"]),)
    bias = x if bias is None else bias
    if rows == 1:
        gain, eps = norm or (x, 0.0)
        normed = norm is not None
        _one_row[grid](x, gain, weight, bias, added, out, eps, n, NORMED=normed, **options)
    else:
        x = rms_norm(x, *norm) if norm else x
        _few_rows[grid](x, weight, bias, added, out, n, rows, **options)
    return out


def _tile(rows: int, n: int, width: int) -> dict[str, int]:
    """Of the weights, for a program: on an H100 the fastest of some, see ``docs/kernels.md``."""
    padded = max(16, triton.next_power_of_2(width))
    if rows > 1:
        return {"N_BLOCK": 32, "K_BLOCK": min(128, padded), "STAGES": 6, "num_warps": 4}
    if padded == 4096 and n >= 8192:
        return {"N_BLOCK": 4, "K_BLOCK": padded, "num_warps": 8}
    return {"N_BLOCK": 2, "K_BLOCK": padded if padded <= 4096 else 2048, "num_warps": 4}


@triton.jit
def _finish(y, z, at, bias, added, out, column, inside, n, GATED: tl.constexpr,
            BIASED: tl.constexpr, ADDED: tl.constexpr):  # fmt: skip
    """Store what a product's sums become."""
    if GATED:
        y = y / (1.0 + tl.exp(-y)) * z
    if BIASED:
        y += tl.load(bias + column, mask=column < n, other=0.0).to(tl.float32)
    if ADDED:
        y += tl.load(added + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n"])
def _one_row(x, gain, weight, bias, added, out, eps, n, WIDTH: tl.constexpr,
             NORMED: tl.constexpr, GATED: tl.constexpr, BIASED: tl.constexpr, ADDED: tl.constexpr,
             N_BLOCK: tl.constexpr, K_BLOCK: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Each weight is multiplied where it was loaded, a tile ahead."""
    column = tl.program_id(0) * N_BLOCK + tl.arange(0, N_BLOCK)
    k = tl.arange(0, K_BLOCK)
    there = (column < n)[:, None]
    at = weight + column.to(tl.int64)[:, None] * WIDTH + k[None, :]
    up_at = at + tl.cast(n, tl.int64) * WIDTH
    w = tl.load(at, mask=there & (k < WIDTH)[None, :], other=0.0, eviction_policy="evict_first")
    u = w
    if GATED:
        u = tl.load(
            up_at, mask=there & (k < WIDTH)[None, :], other=0.0, eviction_policy="evict_first"
        )
    await_last(PDL)
    y = tl.zeros([N_BLOCK, K_BLOCK], tl.float32)
    z = y
    squares = tl.zeros([K_BLOCK], tl.float32)
    for start in range(0, WIDTH, K_BLOCK):
        following = there & (start + K_BLOCK + k < WIDTH)[None, :]
        w_next = tl.load(
            at + start + K_BLOCK, mask=following, other=0.0, eviction_policy="evict_first"
        )
        own = tl.load(x + start + k, mask=start + k < WIDTH, other=0.0).to(tl.float32)
        if NORMED:
            squares += own * own
            own *= tl.load(gain + start + k, mask=start + k < WIDTH, other=0.0).to(tl.float32)
        y += w.to(tl.float32) * own[None, :]
        if GATED:
            u_next = tl.load(
                up_at + start + K_BLOCK, mask=following, other=0.0, eviction_policy="evict_first"
            )
            z += u.to(tl.float32) * own[None, :]
            u = u_next
        w = w_next
    scale = 1.0
    if NORMED:
        scale = 1.0 / tl.sqrt(tl.sum(squares) / WIDTH + eps)
    _finish(tl.sum(y, axis=1) * scale, tl.sum(z, axis=1) * scale, column, bias, added, out, column,
            column < n, n, GATED, BIASED, ADDED)  # fmt: skip


@triton.jit(do_not_specialize=["n", "rows"])
def _few_rows(x, weight, bias, added, out, n, rows, WIDTH: tl.constexpr, GATED: tl.constexpr,
              BIASED: tl.constexpr, ADDED: tl.constexpr, N_BLOCK: tl.constexpr,
              K_BLOCK: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Rows fill up a tile of the tensor cores."""
    await_last(PDL)
    row = tl.arange(0, 16)
    column = tl.program_id(0) * N_BLOCK + tl.arange(0, N_BLOCK)
    k = tl.arange(0, K_BLOCK)
    there, taken = (column < n)[:, None], (row < rows)[:, None]
    at = weight + column.to(tl.int64)[:, None] * WIDTH + k[None, :]
    up_at = at + tl.cast(n, tl.int64) * WIDTH
    own_at = x + row[:, None] * WIDTH + k[None, :]
    y = tl.zeros([16, N_BLOCK], tl.float32)
    z = y
    for start in tl.range(0, WIDTH, K_BLOCK, num_stages=STAGES):
        inside = (start + k < WIDTH)[None, :]
        w = tl.load(at + start, mask=there & inside, other=0.0, eviction_policy="evict_first")
        own = tl.load(own_at + start, mask=taken & inside, other=0.0)
        y = tl.dot(own, w.T, acc=y)
        if GATED:
            u = tl.load(
                up_at + start, mask=there & inside, other=0.0, eviction_policy="evict_first"
            )
            z = tl.dot(own, u.T, acc=z)
    inside = taken & (column < n)[None, :]
    _finish(y, z, row[:, None] * n + column[None, :], bias, added, out, column[None, :], inside, n,
            GATED, BIASED, ADDED)  # fmt: skip
