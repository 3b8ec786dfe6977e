"""Products of few rows by a model's weights, with what comes before and after them.

A decoded token's products take as long as their weights need from memory: what a launch waits for
at its ends is lost. The norm of the input, the gate between two halves of a weight and the addition
to what the product joins are done by the same launch. Sums are float32, and of one order.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..tensors import Tensor
from .runtime import await_last, early, tl, triton

FEW_ROWS = 8


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
        x: ``[..., in]``, bfloat16 or float16, 1 to ``FEW_ROWS`` rows in all.
        weight: ``[out, in]``, contiguous.
        bias: ``[out]``.
        norm: what is done to ``x`` first.
        added: ``[..., out]``.
    """
    return _product(x, weight, weight.shape[0], bias, norm, added)


def gated_linear(x: Tensor, weight: Tensor, norm: Norm | None = None) -> Tensor:
    """silu(y₁) · y₂ with both halves of y = norm(x) Wᵀ, see :func:`linear`; ``[..., out / 2]``."""
    return _product(x, weight, weight.shape[0] // 2, None, norm, None, gated=True)


def _product(x, weight, n, bias, norm, added, gated=False, config=None) -> Tensor:
    *shape, width = x.shape
    rows, x = math.prod(shape), x.contiguous()
    out = x.new_empty([*shape, n])
    config = config or _config(rows, n, width, gated)
    kernel = _one_row if rows == 1 and "ONE" in config else _few_rows
    size = {key: value for key, value in config.items() if key != "ONE"}
    kernel[(triton.cdiv(n, size["N_BLOCK"]),)](
        x, norm.weight if norm else x, weight, x if bias is None else bias,
        x if added is None else added.contiguous(), out, norm.eps if norm else 0.0, n, rows,
        WIDTH=width, NORMED=norm is not None, GATED=gated, BIASED=bias is not None,
        ADDED=added is not None, **{**early(x), **size},
    )  # fmt: skip
    return out


def _config(rows: int, n: int, width: int, gated: bool) -> dict:
    """Sizes of a program's tile."""
    if rows == 1:
        k_block = min(1024, triton.next_power_of_2(width))
        return {"ONE": 1, "N_BLOCK": 4, "K_BLOCK": k_block, "num_warps": 4}
    k_block = min(256, max(16, triton.next_power_of_2(width)))
    return {"N_BLOCK": 32, "K_BLOCK": k_block, "STAGES": 4, "num_warps": 4}


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


@triton.jit(do_not_specialize=["n", "rows"])
def _one_row(x, gain, weight, bias, added, out, eps, n, rows, WIDTH: tl.constexpr,
             NORMED: tl.constexpr, GATED: tl.constexpr, BIASED: tl.constexpr, ADDED: tl.constexpr,
             N_BLOCK: tl.constexpr, K_BLOCK: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Each weight is multiplied where it was loaded, a tile ahead."""
    column = tl.program_id(0) * N_BLOCK + tl.arange(0, N_BLOCK)
    k = tl.arange(0, K_BLOCK)
    there = (column < n)[:, None]
    at = weight + column.to(tl.int64)[:, None] * WIDTH + k[None, :]
    up_at = at + n.to(tl.int64) * WIDTH
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
def _few_rows(x, gain, weight, bias, added, out, eps, n, rows, WIDTH: tl.constexpr,
              NORMED: tl.constexpr, GATED: tl.constexpr, BIASED: tl.constexpr, ADDED: tl.constexpr,
              N_BLOCK: tl.constexpr, K_BLOCK: tl.constexpr, STAGES: tl.constexpr,
              PDL: tl.constexpr):  # fmt: skip
    """Rows fill up a tile of the tensor cores."""
    row = tl.arange(0, 16)
    column = tl.program_id(0) * N_BLOCK + tl.arange(0, N_BLOCK)
    k = tl.arange(0, K_BLOCK)
    there, taken = (column < n)[:, None], (row < rows)[:, None]
    at = weight + column.to(tl.int64)[:, None] * WIDTH + k[None, :]
    up_at = at + n.to(tl.int64) * WIDTH
    own_at = x + row[:, None] * WIDTH + k[None, :]
    await_last(PDL)
    y = tl.zeros([16, N_BLOCK], tl.float32)
    z = y
    squares = tl.zeros([16, K_BLOCK], tl.float32)
    for start in tl.range(0, WIDTH, K_BLOCK, num_stages=STAGES):
        inside = (start + k < WIDTH)[None, :]
        w = tl.load(at + start, mask=there & inside, other=0.0, eviction_policy="evict_first")
        own = tl.load(own_at + start, mask=taken & inside, other=0.0)
        if NORMED:
            wide = own.to(tl.float32)
            squares += wide * wide
            factor = tl.load(gain + start + k, mask=start + k < WIDTH, other=0.0).to(tl.float32)
            own = (wide * factor[None, :]).to(own.dtype)
        y = tl.dot(own, w.T, acc=y)
        if GATED:
            u = tl.load(
                up_at + start, mask=there & inside, other=0.0, eviction_policy="evict_first"
            )
            z = tl.dot(own, u.T, acc=z)
    if NORMED:
        scale = 1.0 / tl.sqrt(tl.sum(squares, axis=1) / WIDTH + eps)
        y *= scale[:, None]
        z *= scale[:, None]
    inside = taken & (column < n)[None, :]
    _finish(y, z, row[:, None] * n + column[None, :], bias, added, out, column[None, :], inside, n,
            GATED, BIASED, ADDED)  # fmt: skip
