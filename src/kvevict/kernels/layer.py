"""What a layer does beside its products and attention: norms, RoPE, the gate, the tail.

Each is a handful of small kernels in a framework, which a decoded token hardly fills: launching
them takes longer than their work. Numbers are widened to float32, and rounded where they are
stored.
"""

from __future__ import annotations

import math

from ..tensors import Tensor
from .attend import address
from .runtime import await_last, early, row_major, tl, triton

COLUMNS = 1024  # of the gate, for a program
MANY = 16  # sequences, of which a program takes several heads


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / √(mean(x²) + eps) · weight over the last axis, of any shape."""
    return _norm(x, None, weight, eps)[1]


def add_rms_norm(x: Tensor, more: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x + more``, in a tensor of its own, and its :func:`rms_norm`."""
    return _norm(x, more, weight, eps)


def _norm(x: Tensor, more: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x, added, width = x.contiguous(), more is not None, x.shape[-1]
    more, sums = (more.contiguous(), x.new_empty(x.shape)) if added else (x, x)
    out, padded = x.new_empty(x.shape), triton.next_power_of_2(width)
    _rms_norm[(math.prod(x.shape[:-1]),)](
        x, more, weight, sums, out, width, eps, ADDED=added, PADDED=padded,
        num_warps=max(1, min(16, padded // 512)),
    )  # fmt: skip
    return sums, out


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, of one shape; they may be parts of one tensor."""
    width = gate.shape[-1]
    out = gate.new_empty(gate.shape)
    gate, up = (row_major(x.reshape([-1, width])) for x in (gate, up))
    grid = (gate.shape[0], triton.cdiv(width, COLUMNS))
    _gated[grid](gate, up, out, width, gate.stride()[0], up.stride()[0], COLUMNS=COLUMNS)
    return out


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on queries or keys, halves turned together.

    Args:
        x: ``[batch, heads, tokens, head_dim]``.
        cos, sin: ``[tokens, head_dim]``, or that for each of the batch. Their second halves are
            looked at: in Paddle's tables the first half of the sines has the turn's sign.

    Returns:
        The same shape, tokens after tokens in memory, as projections make them.
    """
    batch, heads, tokens, head_dim = x.shape
    x = x if x.stride()[-1] == 1 else x.contiguous()
    cos, sin, apart = _tables(cos, sin, tokens)
    out = x.new_empty([batch, tokens, heads, head_dim])
    _turn[(tokens, batch)](
        x, cos, sin, out, heads, *x.stride()[:3], apart, D=head_dim,
        PADDED=triton.next_power_of_2(head_dim // 2), HEADS=min(32, triton.next_power_of_2(heads)),
    )  # fmt: skip
    return out.swapaxes(1, 2)


def turn_and_append(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, table: Tensor, tail_lens: Tensor
) -> Tensor:
    """:func:`turn` for one token of each sequence, whose key and value end its tail.

    Args:
        q, k, v: ``[sequences, heads, 1, head_dim]``; q and k as projected.
        cos, sin: ``[1, head_dim]``, or that for each sequence, see :func:`turn`.
        table, tail_lens: see :func:`~kvevict.kernels.decode.decode_attention`.

    Returns:
        The queries, turned, ``[sequences · query_heads, 1, head_dim]``.
    """
    q, k, v = row_major(q), row_major(k), row_major(v)
    cos, sin, apart = _tables(cos, sin, 1)
    sequences, query_heads, _, head_dim = q.shape
    kv_heads = k.shape[1]
    out = q.new_empty([sequences * query_heads, 1, head_dim])
    at_a_time = 8 if sequences >= MANY else 1
    _turn_and_append[(triton.cdiv(query_heads + kv_heads, at_a_time), sequences)](
        q, k, v, cos, sin, table, tail_lens, out, query_heads, kv_heads, *q.stride()[:2],
        *k.stride()[:2], *v.stride()[:2], apart, D=head_dim, HEADS=at_a_time, num_warps=1,
        **early(q),
    )  # fmt: skip
    return out


def append(k: Tensor, v: Tensor, table: Tensor, tail_lens: Tensor) -> None:
    """Write one token of each sequence to its tail, ``[kv_heads, head_dim]`` each, as the last."""
    k, v = row_major(k), row_major(v)
    kv_heads, head_dim = k.shape
    _append[(kv_heads,)](
        k, v, table, tail_lens, kv_heads, k.stride()[0], v.stride()[0],
        SEQUENCE=kv_heads // tail_lens.shape[0], D=head_dim, num_warps=1,
    )  # fmt: skip


def _tables(cos: Tensor, sin: Tensor, tokens: int) -> tuple[Tensor, Tensor, int]:
    """Both, and how far one sequence's part is from the next one's: 0 where all share it."""
    each = tokens * cos.shape[-1]
    return cos.contiguous(), sin.contiguous(), each if math.prod(cos.shape) > each else 0


@triton.jit
def _rms_norm(x, more, weight, sums, out, width, eps, ADDED: tl.constexpr, PADDED: tl.constexpr):
    column = tl.arange(0, PADDED)
    inside = column < width
    at = tl.program_id(0).to(tl.int64) * width + column
    row = tl.load(x + at, mask=inside, other=0.0)
    if ADDED:
        row = row.to(tl.float32) + tl.load(more + at, mask=inside, other=0.0).to(tl.float32)
        row = row.to(sums.dtype.element_ty)
        tl.store(sums + at, row, mask=inside)
    row = row.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(row * row) / width + eps)
    row *= scale * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, row.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gated(gate, up, out, width, gate_row, up_row, COLUMNS: tl.constexpr):
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside, row = column < width, tl.program_id(0).to(tl.int64)
    x = tl.load(gate + row * gate_row + column, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(up + row * up_row + column, mask=inside, other=0.0).to(tl.float32)
    at = row * width + column
    tl.store(out + at, (x / (1.0 + tl.exp(-x)) * y).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _turned(first, second, cos, sin):
    """Both halves of entries, in float32."""
    first, second = first.to(tl.float32), second.to(tl.float32)
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _turn(x, cos, sin, out, heads, x_batch, x_head, x_token, table_batch, D: tl.constexpr,
          PADDED: tl.constexpr, HEADS: tl.constexpr):  # fmt: skip
    token, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    d = tl.arange(0, PADDED)
    half = batch * table_batch + token * D + D // 2 + d
    c = tl.load(cos + half, mask=d < D // 2, other=0.0).to(tl.float32)
    s = tl.load(sin + half, mask=d < D // 2, other=0.0).to(tl.float32)
    x += batch * x_batch + token * x_token
    out += (batch * tl.num_programs(0) + token) * heads * D
    for start in range(0, heads, HEADS):
        head = (start + tl.arange(0, HEADS)).to(tl.int64)[:, None]
        at, inside = x + head * x_head + d[None, :], (head < heads) & (d < D // 2)[None, :]
        first = tl.load(at, mask=inside, other=0.0)
        second = tl.load(at + D // 2, mask=inside, other=0.0)
        first, second = _turned(first, second, c[None, :], s[None, :])
        at = out + head * D + d[None, :]
        tl.store(at, first.to(out.dtype.element_ty), mask=inside)
        tl.store(at + D // 2, second.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _append(k, v, table, tail_lens, kv_heads, k_head, v_head, SEQUENCE: tl.constexpr,
            D: tl.constexpr):  # fmt: skip
    head = tl.program_id(0)
    d = tl.arange(0, D)
    place = (tl.load(tail_lens + head // SEQUENCE) - 1).to(tl.int64) * D + d
    tl.store(
        address(table, 2, head, kv_heads, k.dtype.element_ty) + place,
        tl.load(k + head * k_head + d),
    )
    tl.store(
        address(table, 3, head, kv_heads, v.dtype.element_ty) + place,
        tl.load(v + head * v_head + d),
    )


@triton.jit
def _turn_and_append(q, k, v, cos, sin, table, tail_lens, out, query_heads, kv_heads, q_sequence,
                     q_head, k_sequence, k_head, v_sequence, v_head, table_sequence,
                     D: tl.constexpr, HEADS: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    await_last(PDL)
    head, sequence = tl.program_id(0) * HEADS + tl.arange(0, HEADS), tl.program_id(1).to(tl.int64)
    d = tl.arange(0, D // 2)[None, :]
    half = sequence * table_sequence + D // 2 + d
    c, s = tl.load(cos + half).to(tl.float32), tl.load(sin + half).to(tl.float32)
    dtype: tl.constexpr = out.dtype.element_ty

    asks = (head < query_heads)[:, None]
    source = q + sequence * q_sequence + head[:, None] * q_head + d
    first, second = tl.load(source, mask=asks), tl.load(source + D // 2, mask=asks)
    first, second = _turned(first, second, c, s)
    target = out + (sequence * query_heads + head)[:, None] * D + d
    tl.store(target, first.to(dtype), mask=asks)
    tl.store(target + D // 2, second.to(dtype), mask=asks)

    kv_head = head - query_heads
    held = (kv_head >= 0) & (kv_head < kv_heads)
    all_heads, row = kv_heads * tl.num_programs(1), sequence * kv_heads + tl.where(held, kv_head, 0)
    place = (tl.load(tail_lens + sequence) - 1).to(tl.int64) * D + d
    held = held[:, None]
    source = k + sequence * k_sequence + kv_head[:, None] * k_head + d
    first, second = tl.load(source, mask=held), tl.load(source + D // 2, mask=held)
    first, second = _turned(first, second, c, s)
    target = address(table, 2, row, all_heads, dtype)[:, None] + place
    tl.store(target, first.to(dtype), mask=held)
    tl.store(target + D // 2, second.to(dtype), mask=held)
    source = v + sequence * v_sequence + kv_head[:, None] * v_head + d
    target = address(table, 3, row, all_heads, dtype)[:, None] + place
    tl.store(target, tl.load(source, mask=held), mask=held)
    tl.store(target + D // 2, tl.load(source + D // 2, mask=held), mask=held)
