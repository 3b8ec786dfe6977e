"""Column statistics of causal attention weights, from a log-sum-exp that is already known.

a_ij = exp(q_i · k_j / √d − lse_i) needs one product QKᵀ and no softmax. Each program owns a tile
of keys and walks over the query rows that see it, so a column's sum stays in one program: no
atomics, and the same bits on every run. Sums are kept for each place of the tile and added up once,
at the end; three small programs share a multiprocessor, so that one's exponentials run beside
another's product.
"""

from __future__ import annotations

import math

from ..errors import InputError
from ..tensors import Tensor
from .runtime import LOG2_E, check_heads, row_major, tiles, tl, triton

ROWS, KEYS = 64, 128  # a tile; a program owns KEYS
POWER = {"sum": 1, "sum_of_squares": 2, "count_below_mean": 1}


def column_statistic(q: Tensor, k: Tensor, lse: Tensor, reduce: str, per_kv_head: bool) -> Tensor:
    """Reduce the attention weights of a prompt's last query rows over those rows.

    Args:
        q: ``[batch, query_heads, rows, head_dim]``, bfloat16 or float16: the last ``rows`` rows.
        k: ``[batch, kv_heads, keys, head_dim]``, the whole prompt; query head h reads kv head
            h // (query_heads / kv_heads).
        lse: float32 ``[batch, query_heads, rows]``, natural logarithm of Σ_j exp(q_i · k_j / √d).
        reduce: ``sum`` Σ_i a_ij, ``sum_of_squares`` Σ_i a_ij², or ``count_below_mean``: the number
            of rows i ≥ j whose weight on j is below 1 / (i + 1), the mean over visible keys.
        per_kv_head: sum over the query heads of each group (``count_below_mean``: the weights are
            summed before the comparison, with the mean of the sums).

    Returns:
        float32 ``[batch, kv_heads, keys]``, or ``[batch, query_heads, keys]``.

    Raises:
        InputError: a shape or type that the kernels do not take, or an unknown ``reduce``.
    """
    if reduce not in POWER:
        raise InputError(f"no column statistic is called {reduce!r}")
    check_heads(q, k)
    q, k = row_major(q), row_major(k)
    batch, query_heads, rows, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    heads_out = kv_heads if per_kv_head else query_heads
    out = lse.new_empty([batch, heads_out, keys])
    exponent = POWER[reduce] * LOG2_E  # weights are powers of 2 in the kernels
    shift = lse.contiguous() * -exponent
    operands = (tiles(q, ROWS), tiles(k, KEYS), shift, out, rows, keys, query_heads)
    options = {
        "GROUP": query_heads // kv_heads,
        "SUMMED": query_heads // heads_out,
        "D": head_dim,
        "ROWS": ROWS,
        "KEYS": KEYS,
        "num_warps": 8,
        "num_stages": 2,
    }
    scale = exponent / math.sqrt(head_dim)
    if reduce == "count_below_mean":
        _count_below_mean[(triton.cdiv(keys, KEYS), batch * heads_out)](*operands, scale, **options)
    else:
        if head_dim <= 128:  # registers for three programs a multiprocessor
            options.update(num_warps=4, maxnreg=168)
        _sum[(triton.cdiv(keys, KEYS), batch * kv_heads)](*operands, scale, **options)
    return out


@triton.jit
def _sum(q_tiles, k_tiles, shift, out, rows, keys, query_heads, scale, GROUP: tl.constexpr,
         SUMMED: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
         KEYS: tl.constexpr):  # fmt: skip
    kv_heads = query_heads // GROUP
    batch, kv_head = tl.program_id(1) // kv_heads, tl.program_id(1) % kv_heads
    first_key = tl.program_id(0) * KEYS
    k = k_tiles.load([batch, kv_head, first_key, 0]).reshape(KEYS, D)
    unseen = first_key - (keys - rows)  # rows before this one see none of these keys
    begin = tl.maximum(unseen, 0) // ROWS
    end = tl.cdiv(rows, ROWS)
    clear = tl.minimum(tl.cdiv(tl.maximum(unseen + KEYS - 1, 0), ROWS), end)
    for part in range(GROUP // SUMMED):
        head = kv_head * GROUP + part * SUMMED
        shift_head = shift + (batch * query_heads + head).to(tl.int64) * rows
        weights = tl.zeros([ROWS, KEYS], tl.float32)
        weights = _add_tiles(weights, k, q_tiles, batch, head, shift_head, clear, end, rows,
                             unseen, scale, SUMMED, D, ROWS, KEYS, False)  # fmt: skip
        weights = _add_tiles(weights, k, q_tiles, batch, head, shift_head, begin, clear, rows,
                             unseen, scale, SUMMED, D, ROWS, KEYS, True)  # fmt: skip
        key = first_key + tl.arange(0, KEYS)
        row_out = tl.program_id(1) * (GROUP // SUMMED) + part
        tl.store(out + row_out.to(tl.int64) * keys + key, tl.sum(weights, axis=0), mask=key < keys)


@triton.jit
def _add_tiles(weights, k, q_tiles, batch, head, shift_head, begin, end, rows, unseen, scale,
               HEADS: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
               MASKED: tl.constexpr):  # fmt: skip
    """Add the weights of HEADS heads on row tiles ``begin`` to ``end``.

    The first key of the tile is seen by row ``unseen`` and those after it.
    """
    for step in range((end - begin) * HEADS):
        start = (begin + step // HEADS) * ROWS
        row = start + tl.arange(0, ROWS)
        # A row past the end gets the weight exp(-inf).
        shift = tl.load(
            shift_head + step % HEADS * rows + row, mask=row < rows, other=-float("inf")
        )
        q = q_tiles.load([batch, head + step % HEADS, start, 0]).reshape(ROWS, D)
        weight = tl.exp2(tl.dot(q, k.T) * scale + shift[:, None])
        if MASKED:
            visible = tl.arange(0, KEYS)[None, :] <= (row - unseen)[:, None]
            weight = tl.where(visible, weight, 0.0)
        weights += weight
    return weights


@triton.jit
def _count_below_mean(q_tiles, k_tiles, shift, out, rows, keys, query_heads, scale,
                      GROUP: tl.constexpr, SUMMED: tl.constexpr, D: tl.constexpr,
                      ROWS: tl.constexpr, KEYS: tl.constexpr):  # fmt: skip
    heads_out = query_heads // SUMMED
    batch, head = tl.program_id(1) // heads_out, tl.program_id(1) % heads_out * SUMMED
    first_key = tl.program_id(0) * KEYS
    key = first_key + tl.arange(0, KEYS)
    k = k_tiles.load([batch, head // GROUP, first_key, 0]).reshape(KEYS, D)
    shift_head = shift + (batch * query_heads + head).to(tl.int64) * rows
    count = tl.zeros([ROWS, KEYS], tl.int32)
    for start in range(tl.maximum(first_key - (keys - rows), 0) // ROWS * ROWS, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        weights = tl.zeros([ROWS, KEYS], tl.float32)
        for member in range(SUMMED):
            q = q_tiles.load([batch, head + member, start, 0]).reshape(ROWS, D)
            offset = tl.load(shift_head + member * rows + row, mask=row < rows, other=0.0)
            weights += tl.exp2(tl.dot(q, k.T) * scale + offset[:, None])
        position = row + (keys - rows)
        # The first token's only weight is 1, its own mean, whatever rounding makes of it.
        counts = (key[None, :] <= position[:, None]) & ((position > 0) & (row < rows))[:, None]
        below = weights < (SUMMED / (position + 1).to(tl.float32))[:, None]
        count += (counts & below).to(tl.int32)
    out += tl.program_id(1).to(tl.int64) * keys
    tl.store(out + key, tl.sum(count, axis=0).to(tl.float32), mask=key < keys)
