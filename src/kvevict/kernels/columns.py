"""Column statistics of causal attention weights, from a log-sum-exp that is already known.

a_ij = exp(q_i · k_j / √d − lse_i) needs one product QKᵀ and no softmax. Each program owns a tile
of keys and walks over the query rows that see it, so a column's sum stays in one program: no
atomics, and the same bits on every run. Sums are kept for each place of the tile and added up once,
at the end; three small programs share a multiprocessor, so that one's exponentials run beside
another's product. The query heads of a group take turns in the rows of a tile, so that few rows
fill it, too.
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
            Sums are taken of a copy.
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
    k = row_major(k)
    batch, query_heads, rows, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    group = query_heads // kv_heads
    heads_out = kv_heads if per_kv_head else query_heads
    out = lse.new_empty([batch, heads_out, keys])
    exponent = POWER[reduce] * LOG2_E  # weights are powers of 2 in the kernels
    shift = lse * -exponent
    options = {"GROUP": group, "SUMMED": query_heads // heads_out, "num_warps": 8, "num_stages": 2}
    if reduce == "count_below_mean":
        kernel, heads = _count_below_mean, heads_out
    else:
        kernel, heads = _sum, kv_heads
        # To be summed one by one, heads need the same places in every tile.
        packed = group if per_kv_head or ROWS % group == 0 else 1
        q, shift, options["PACKED"] = _in_turns(q, packed), _in_turns(shift, packed), packed
        if head_dim <= 128:  # registers for three programs a multiprocessor
            options.update(num_warps=4, maxnreg=168)
    kernel[(triton.cdiv(keys, KEYS), batch * heads)](
        tiles(row_major(q), ROWS), tiles(k, KEYS), shift.contiguous(), out, rows, keys,
        query_heads, exponent / math.sqrt(head_dim), D=head_dim, ROWS=ROWS, KEYS=KEYS, **options,
    )  # fmt: skip
    return out


def _in_turns(x: Tensor, heads: int) -> Tensor:
    """``[batch, h, rows, ...]`` as ``[batch, h / heads, rows · heads, ...]``, row by row."""
    batch, total, rows, *rest = x.shape
    x = x.reshape([batch, total // heads, heads, rows, *rest]).swapaxes(2, 3)
    return x.reshape([batch, total // heads, rows * heads, *rest])


@triton.jit
def _sum(q_tiles, k_tiles, shift, out, rows, keys, query_heads, scale, GROUP: tl.constexpr,
         SUMMED: tl.constexpr, PACKED: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
         KEYS: tl.constexpr):  # fmt: skip
    kv_heads = query_heads // GROUP
    batch, kv_head = tl.program_id(1) // kv_heads, tl.program_id(1) % kv_heads
    first_key = tl.program_id(0) * KEYS
    k = k_tiles.load([batch, kv_head, first_key, 0]).reshape(KEYS, D)
    # Row r of PACKED heads is rows r * PACKED and following of q_tiles and shift.
    unseen = first_key - (keys - rows)  # rows before this one see none of these keys
    begin = tl.maximum(unseen, 0) * PACKED // ROWS
    end = tl.cdiv(rows * PACKED, ROWS)
    clear = tl.minimum(tl.cdiv(tl.maximum(unseen + KEYS - 1, 0) * PACKED, ROWS), end)
    for part in range(GROUP // PACKED):
        pack = kv_head * (GROUP // PACKED) + part
        head = tl.program_id(1).to(tl.int64) * GROUP + part * PACKED
        shift_pack = shift + head * rows
        weights = tl.zeros([ROWS, KEYS], tl.float32)
        weights = _add_tiles(weights, k, q_tiles, batch, pack, shift_pack, clear, end, rows,
                             unseen, scale, PACKED, D, ROWS, KEYS, False)  # fmt: skip
        weights = _add_tiles(weights, k, q_tiles, batch, pack, shift_pack, begin, clear, rows,
                             unseen, scale, PACKED, D, ROWS, KEYS, True)  # fmt: skip
        SUMS: tl.constexpr = PACKED // SUMMED
        sums = tl.sum(weights.reshape(ROWS // SUMS, SUMS, KEYS), axis=0)
        row_out = (head // SUMMED + tl.arange(0, SUMS))[:, None]
        key = first_key + tl.arange(0, KEYS)[None, :]
        tl.store(out + row_out * keys + key, sums, mask=key < keys)


@triton.jit
def _add_tiles(weights, k, q_tiles, batch, pack, shift_pack, begin, end, rows, unseen, scale,
               PACKED: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
               MASKED: tl.constexpr):  # fmt: skip
    """Add the weights of row tiles ``begin`` to ``end``.

    The first key of the tile is seen by row ``unseen`` and those after it.
    """
    for tile in range(begin, end):
        row = tile * ROWS + tl.arange(0, ROWS)
        # A row past the end gets the weight exp(-inf).
        shift = tl.load(shift_pack + row, mask=row < rows * PACKED, other=-float("inf"))
        q = q_tiles.load([batch, pack, tile * ROWS, 0]).reshape(ROWS, D)
        weight = tl.exp2(tl.dot(q, k.T) * scale + shift[:, None])
        if MASKED:
            visible = tl.arange(0, KEYS)[None, :] <= (row // PACKED - unseen)[:, None]
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
