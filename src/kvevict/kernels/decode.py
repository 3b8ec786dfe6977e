"""Decode attention over heads that hold different numbers of entries (flash-decoding, ragged).

The entries of all heads lie one after another. They are cut into chunks of equal size, so that a
head with ten times the entries gets ten times the programs; a second launch combines the chunks
of each head. The query heads of a group share a tile: keys and values are read once.
"""

from __future__ import annotations

import math

from ..tensors import Tensor, namespace
from .runtime import LOG2_E, check_heads, row_major, tl, triton

CHUNK = 1024  # entries that a program reads


def decode_attention(
    q: Tensor, keys: Tensor, values: Tensor, starts: Tensor, tail_k: Tensor, tail_v: Tensor,
    tail_len: Tensor,
) -> Tensor:  # fmt: skip
    """Attention of the newest tokens over a compacted prompt and the tokens decoded since.

    Launches depend on shapes alone, so a CUDA graph can hold them while the tail grows.

    Args:
        q: ``[1, query_heads, new, head_dim]``, bfloat16 or float16: the tail's last ``new`` tokens.
        keys, values: ``[entries, head_dim]``, the kept entries, head after head.
        starts: int32 ``[kv_heads + 1]``: the entries of head h are ``starts[h]`` to
            ``starts[h + 1]``.
        tail_k, tail_v: ``[kv_heads, capacity, head_dim]``, the decoded tokens.
        tail_len: int32 ``[1]``, how many of them there are, the new ones included; new token i
            sees all but the ``new - 1 - i`` last.

    Returns:
        ``[1, query_heads, new, head_dim]``.

    Raises:
        InputError: a shape or type that the kernels do not take.
    """
    check_heads(q, tail_k[None])
    q, tail_k, tail_v = row_major(q), row_major(tail_k), row_major(tail_v)
    _, query_heads, new, head_dim = q.shape
    kv_heads, capacity = tail_k.shape[0], tail_k.shape[1]
    group = query_heads // kv_heads
    # Each head may leave one chunk unfilled; the grid cannot know and has room for all of them.
    prefix_chunks = triton.cdiv(keys.shape[0], CHUNK) + kv_heads
    tail_chunks = triton.cdiv(capacity, CHUNK)
    slots = prefix_chunks + kv_heads * tail_chunks
    rows = group * new
    float32 = namespace(q).float32
    partial = q.new_empty([slots, rows, head_dim], dtype=float32)
    partial_lse = q.new_empty([slots, rows], dtype=float32)
    out = q.new_empty([1, query_heads, new, head_dim])
    sizes = {
        "KV_HEADS": kv_heads,
        "KV_HEADS_PADDED": triton.next_power_of_2(kv_heads),
        "GROUP": group,
        "D": head_dim,
        "CHUNK": CHUNK,
    }
    _chunks[(slots,)](
        q, keys, values, starts, tail_k, tail_v, tail_len, partial, partial_lse, new,
        prefix_chunks, tail_chunks, q.stride(1), q.stride(2), *tail_k.stride()[:2],
        *tail_v.stride()[:2], keys.stride(0), values.stride(0), LOG2_E / math.sqrt(head_dim),
        **sizes, ROWS=max(16, triton.next_power_of_2(rows)), KEYS=64,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    _combine[(kv_heads * rows,)](
        partial, partial_lse, starts, out, rows, prefix_chunks, tail_chunks, **sizes, num_warps=8
    )
    return out


@triton.jit
def _prefix_chunks(starts, KV_HEADS: tl.constexpr, KV_HEADS_PADDED: tl.constexpr,
                   CHUNK: tl.constexpr):  # fmt: skip
    """How many chunks each head has, and the first slot behind its own."""
    head = tl.arange(0, KV_HEADS_PADDED)
    begin = tl.load(starts + head, mask=head < KV_HEADS, other=0)
    end = tl.load(starts + head + 1, mask=head < KV_HEADS, other=0)
    count = tl.cdiv(end - begin, CHUNK)
    return count, tl.cumsum(count)


@triton.jit
def _chunks(q, keys, values, starts, tail_k, tail_v, tail_len, partial, partial_lse, new,
            prefix_chunks, tail_chunks, q_head, q_token, tail_k_head, tail_k_token, tail_v_head,
            tail_v_token, key_stride, value_stride, log2_scale, KV_HEADS: tl.constexpr,
            KV_HEADS_PADDED: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr,
            CHUNK: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr):  # fmt: skip
    slot = tl.program_id(0)
    row = tl.arange(0, ROWS)
    token = row % new
    d = tl.arange(0, D)
    if slot < prefix_chunks:
        count, last = _prefix_chunks(starts, KV_HEADS, KV_HEADS_PADDED, CHUNK)
        kv_head = tl.sum((last <= slot).to(tl.int32))
        kv_head = tl.minimum(kv_head, KV_HEADS - 1)  # a slot to spare: no entries are left for it
        chosen = tl.arange(0, KV_HEADS_PADDED) == kv_head
        begin = (slot - tl.sum(tl.where(chosen, last - count, 0))) * CHUNK
        first = tl.load(starts + kv_head)
        entries = tl.load(starts + kv_head + 1) - first
        keys += first.to(tl.int64) * key_stride
        values += first.to(tl.int64) * value_stride
        visible = tl.zeros([ROWS], tl.int32) + entries
    else:
        kv_head = (slot - prefix_chunks) // tail_chunks
        begin = (slot - prefix_chunks) % tail_chunks * CHUNK
        entries = tl.load(tail_len)
        keys = tail_k + kv_head.to(tl.int64) * tail_k_head
        values = tail_v + kv_head.to(tl.int64) * tail_v_head
        key_stride, value_stride = tail_k_token, tail_v_token
        visible = entries - (new - 1 - token)

    head = kv_head * GROUP + row // new
    q_tile = tl.load(q + head[:, None] * q_head + token[:, None] * q_token + d[None, :],
                     mask=(row < GROUP * new)[:, None], other=0.0)  # fmt: skip
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, D], tl.float32)
    for start in range(begin, tl.minimum(begin + CHUNK, entries), KEYS):
        key = start + tl.arange(0, KEYS)
        inside = (key < entries)[:, None]
        k = tl.load(keys + key[:, None] * key_stride + d[None, :], mask=inside, other=0.0)
        scores = tl.dot(q_tile, k.T) * log2_scale
        scores = tl.where(key[None, :] < visible[:, None], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        # A row that sees nothing yet would give -inf less -inf.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(weights, axis=1)
        v = tl.load(values + key[:, None] * value_stride + d[None, :], mask=inside, other=0.0)
        mixed = tl.dot(weights.to(v.dtype), v, acc=mixed * shrink[:, None])
        peak = higher
    seen = total > 0
    mixed = mixed / tl.where(seen, total, 1.0)[:, None]
    at = slot.to(tl.int64) * (GROUP * new) + row
    inside = row < GROUP * new
    tl.store(partial + at[:, None] * D + d[None, :], mixed, mask=inside[:, None])
    tl.store(partial_lse + at, tl.where(seen, peak + tl.log2(total), float("-inf")), mask=inside)


@triton.jit
def _combine(partial, partial_lse, starts, out, rows, prefix_chunks, tail_chunks,
             KV_HEADS: tl.constexpr, KV_HEADS_PADDED: tl.constexpr, GROUP: tl.constexpr,
             D: tl.constexpr, CHUNK: tl.constexpr):  # fmt: skip
    """One row of a head: its chunks of the prefix, then those of the tail."""
    kv_head, row = tl.program_id(0) // rows, tl.program_id(0) % rows
    count, last = _prefix_chunks(starts, KV_HEADS, KV_HEADS_PADDED, CHUNK)
    chosen = tl.arange(0, KV_HEADS_PADDED) == kv_head
    count = tl.sum(tl.where(chosen, count, 0))
    first = tl.sum(tl.where(chosen, last, 0)) - count
    d = tl.arange(0, D)
    peak = tl.full([], -1e30, tl.float32)  # a number, so that chunks that saw nothing weigh 0
    total = tl.zeros([], tl.float32)
    mixed = tl.zeros([D], tl.float32)
    for start in range(0, count + tail_chunks, 64):
        chunk = start + tl.arange(0, 64)
        in_tail = prefix_chunks + kv_head * tail_chunks + chunk - count
        at = tl.where(chunk < count, first + chunk, in_tail).to(tl.int64) * rows + row
        inside = chunk < count + tail_chunks
        lse = tl.load(partial_lse + at, mask=inside, other=float("-inf"))
        part = tl.load(partial + at[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)
        higher = tl.maximum(peak, tl.max(lse))
        weights = tl.exp2(lse - higher)
        shrink = tl.exp2(peak - higher)
        total = total * shrink + tl.sum(weights)
        mixed = mixed * shrink + tl.sum(weights[:, None] * part, axis=0)
        peak = higher
    # out is [query_heads, new, head_dim], and a head's rows are [group, new].
    tl.store(out + tl.program_id(0).to(tl.int64) * D + d, mixed / total)
