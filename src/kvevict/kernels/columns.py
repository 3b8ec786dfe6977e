"""Column statistics of causal attention weights, from a log-sum-exp that is already known.

a_ij = exp(q_i · k_j / √d − lse_i) needs one product QKᵀ and no softmax. Each program owns a tile
of keys and walks over the query rows that see it, so a column's sum stays in one program: no
atomics, and the same bits on every run. The tile of scores is keys × rows, which makes the sum
over rows a sum inside each thread.
"""

from __future__ import annotations

import math

from ..errors import InputError
from ..tensors import Tensor
from .runtime import LOG2_E, check_heads, row_major, tiles, tl, triton

KEYS = 128  # that a program owns
POWER = {"sum": 1, "sum_of_squares": 2}


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
    if reduce not in (*POWER, "count_below_mean"):
        raise InputError(f"no column statistic is called {reduce!r}")
    check_heads(q, k)
    q, k = row_major(q), row_major(k)
    batch, query_heads, rows, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    group = query_heads // kv_heads
    heads_out = kv_heads if per_kv_head else query_heads
    out = lse.new_empty([batch, heads_out, keys])
    # Few rows make one short tile; shared memory (head_dim 256) or registers may leave room for 64.
    counting = reduce == "count_below_mean"
    tile_rows = 64 if head_dim == 256 or counting else 128
    tile_rows = min(max(32, triton.next_power_of_2(rows)), tile_rows)
    padded = triton.cdiv(rows, tile_rows) * tile_rows
    # Scores start at −lse·√d instead of 0, which subtracts it for nothing. A row past the end
    # starts at −∞.
    bias = lse.new_full([batch, query_heads, padded], -math.inf)
    bias[:, :, :rows] = lse * -math.sqrt(head_dim)
    operands = (tiles(q, tile_rows), tiles(k, KEYS), bias, out, padded, rows, keys)
    log2_scale = LOG2_E / math.sqrt(head_dim)
    sizes = {
        "GROUP": group,
        "SUMMED": query_heads // heads_out,
        "D": head_dim,
        "ROWS": tile_rows,
        "KEYS": KEYS,
    }
    launch = {"num_warps": 8, "num_stages": 2}
    if counting:
        grid = (triton.cdiv(keys, KEYS), batch * heads_out)
        _count_below_mean[grid](*operands, query_heads, log2_scale, **sizes, **launch)
    else:
        grid = (triton.cdiv(keys, KEYS), batch * kv_heads)
        _sum[grid](*operands, kv_heads, POWER[reduce] * log2_scale, **sizes, **launch)
    return out


@triton.jit
def _sum(q_tiles, k_tiles, bias, out, padded, rows, keys, kv_heads, log2_scale,
         GROUP: tl.constexpr, SUMMED: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
         KEYS: tl.constexpr):  # fmt: skip
    batch, kv_head = tl.program_id(1) // kv_heads, tl.program_id(1) % kv_heads
    first_key = tl.program_id(0) * KEYS
    key = first_key + tl.arange(0, KEYS)
    k = k_tiles.load([batch, kv_head, first_key, 0]).reshape(KEYS, D)
    unseen = first_key - (keys - rows)  # rows before this one see none of these keys
    begin = tl.maximum(unseen, 0) // ROWS
    end = tl.cdiv(rows, ROWS)
    clear = tl.minimum(tl.cdiv(tl.maximum(unseen + KEYS - 1, 0), ROWS), end)
    for part in range(GROUP // SUMMED):
        head = kv_head * GROUP + part * SUMMED
        column = tl.zeros([KEYS], tl.float32)
        column = _add_tiles(column, k, q_tiles, batch, head, kv_heads * GROUP, bias, padded, begin,
                            clear, key - (keys - rows), log2_scale, SUMMED, D, ROWS, KEYS,
                            True)  # fmt: skip
        column = _add_tiles(column, k, q_tiles, batch, head, kv_heads * GROUP, bias, padded, clear,
                            end, key - (keys - rows), log2_scale, SUMMED, D, ROWS, KEYS,
                            False)  # fmt: skip
        row_out = tl.program_id(1) * (GROUP // SUMMED) + part
        tl.store(out + row_out.to(tl.int64) * keys + key, column, mask=key < keys)


@triton.jit
def _add_tiles(column, k, q_tiles, batch, head, query_heads, bias, padded, begin, end, first_row,
               log2_scale, HEADS: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
               KEYS: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Add to ``column`` the weights of HEADS heads on row tiles ``begin`` to ``end``.

    ``first_row`` is the first row that sees each key.
    """
    bias += (batch * query_heads + head).to(tl.int64) * padded
    for step in range((end - begin) * HEADS):
        start = (begin + step // HEADS) * ROWS
        row = start + tl.arange(0, ROWS)
        q = q_tiles.load([batch, head + step % HEADS, start, 0]).reshape(ROWS, D)
        shift = tl.load(bias + step % HEADS * padded + row)
        scores = tl.dot(k, q.T, acc=tl.broadcast_to(shift[None, :], (KEYS, ROWS)))
        weights = tl.exp2(scores * log2_scale)
        if MASKED:
            weights = tl.where(row[None, :] >= first_row[:, None], weights, 0.0)
        column += tl.sum(weights, axis=1)
    return column


@triton.jit
def _count_below_mean(q_tiles, k_tiles, bias, out, padded, rows, keys, query_heads, log2_scale,
                      GROUP: tl.constexpr, SUMMED: tl.constexpr, D: tl.constexpr,
                      ROWS: tl.constexpr, KEYS: tl.constexpr):  # fmt: skip
    heads_out = query_heads // SUMMED
    batch, head = tl.program_id(1) // heads_out, tl.program_id(1) % heads_out * SUMMED
    first_key = tl.program_id(0) * KEYS
    key = first_key + tl.arange(0, KEYS)
    k = k_tiles.load([batch, head // GROUP, first_key, 0]).reshape(KEYS, D)
    bias += (batch * query_heads + head).to(tl.int64) * padded
    count = tl.zeros([KEYS], tl.int32)
    for start in range(tl.maximum(first_key - (keys - rows), 0) // ROWS * ROWS, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        weights = tl.zeros([KEYS, ROWS], tl.float32)
        for member in range(SUMMED):
            q = q_tiles.load([batch, head + member, start, 0]).reshape(ROWS, D)
            shift = tl.load(bias + member * padded + row)
            scores = tl.dot(k, q.T, acc=tl.broadcast_to(shift[None, :], (KEYS, ROWS)))
            weights += tl.exp2(scores * log2_scale)
        position = row + (keys - rows)
        # The first token's only weight is 1, its own mean, whatever rounding makes of it.
        counts = (key[:, None] <= position[None, :]) & ((position > 0) & (row < rows))[None, :]
        below = weights < (SUMMED / (position + 1).to(tl.float32))[None, :]
        count += tl.sum((counts & below).to(tl.int32), axis=1)
    tl.store(
        out + tl.program_id(1).to(tl.int64) * keys + key, count.to(tl.float32), mask=key < keys
    )
