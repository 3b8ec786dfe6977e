"""Causal flash attention (Dao, 2023) that also returns its log-sum-exp."""

from __future__ import annotations

import math

from ..tensors import Tensor, namespace
from .runtime import LOG2_E, check_heads, row_major, tiles, tl, triton

LN_2 = tl.constexpr(1 / LOG2_E)


def flash_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Causal grouped-query attention in O(N) memory.

    Args:
        q: ``[batch, query_heads, rows, head_dim]``, bfloat16 or float16: the last ``rows`` rows
            of a prompt of ``keys`` tokens.
        k, v: ``[batch, kv_heads, keys, head_dim]``; query head h reads kv head
            h // (query_heads / kv_heads).

    Returns:
        The output, as ``q``; and float32 ``[batch, query_heads, rows]``, the natural logarithm of
        Σ_j exp(q_i · k_j / √d).

    Raises:
        InputError: a shape or type that the kernel does not take.
    """
    check_heads(q, k)
    check_heads(q, v)
    q, k, v = row_major(q), row_major(k), row_major(v)
    batch, query_heads, rows, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    ns = namespace(q)
    out = ns.empty_like(q)
    lse = q.new_empty([batch, query_heads, rows], dtype=ns.float32)
    tile_rows, tile_keys = 128, 64 if head_dim == 256 else 128
    _flash[(triton.cdiv(rows, tile_rows), batch * query_heads)](
        tiles(q, tile_rows), tiles(k, tile_keys), tiles(v, tile_keys),
        tiles(out, tile_rows), lse, rows, keys, query_heads, LOG2_E / math.sqrt(head_dim),
        GROUP=query_heads // kv_heads, D=head_dim, ROWS=tile_rows, KEYS=tile_keys,
        num_warps=8, num_stages=2 if head_dim == 256 else 3,
    )  # fmt: skip
    return out, lse


@triton.jit
def _flash(q_tiles, k_tiles, v_tiles, out_tiles, lse, rows, keys, query_heads, log2_scale,
           GROUP: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
           KEYS: tl.constexpr):  # fmt: skip
    # The last rows see the most keys: they go first, so that no long program is left at the end.
    first_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    batch, head = tl.program_id(1) // query_heads, tl.program_id(1) % query_heads
    row = first_row + tl.arange(0, ROWS)
    position = row + (keys - rows)
    q = q_tiles.load([batch, head, first_row, 0]).reshape(ROWS, D)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, D], tl.float32)
    clear = (first_row + (keys - rows) + 1) // KEYS * KEYS
    end = tl.minimum(first_row + (keys - rows) + ROWS, keys)
    peak, total, mixed = _add_keys(peak, total, mixed, q, k_tiles, v_tiles, batch, head // GROUP,
                                   0, clear, position, log2_scale, D, KEYS, False)  # fmt: skip
    peak, total, mixed = _add_keys(peak, total, mixed, q, k_tiles, v_tiles, batch, head // GROUP,
                                   clear, end, position, log2_scale, D, KEYS, True)  # fmt: skip
    tile = (mixed / total[:, None]).to(out_tiles.dtype).reshape(1, 1, ROWS, D)
    out_tiles.store([batch, head, first_row, 0], tile)
    lse_row = lse + tl.program_id(1).to(tl.int64) * rows + row
    tl.store(lse_row, (peak + tl.log2(total)) * LN_2, mask=row < rows)


@triton.jit
def _add_keys(peak, total, mixed, q, k_tiles, v_tiles, batch, kv_head, begin, end, position,
              log2_scale, D: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Online softmax over the keys ``begin`` to ``end``; peak in units of log 2."""
    for start in range(begin, end, KEYS):
        k = k_tiles.load([batch, kv_head, start, 0]).reshape(KEYS, D)
        scores = tl.dot(q, k.T)
        if MASKED:
            key = start + tl.arange(0, KEYS)
            scores = tl.where(key[None, :] <= position[:, None], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1) * log2_scale)
        weights = tl.exp2(scores * log2_scale - higher[:, None])
        shrink = tl.exp2(peak - higher)
        total = total * shrink + tl.sum(weights, axis=1)
        v = v_tiles.load([batch, kv_head, start, 0]).reshape(KEYS, D)
        mixed = tl.dot(weights.to(v.dtype), v, acc=mixed * shrink[:, None])
        peak = higher
    return peak, total, mixed
