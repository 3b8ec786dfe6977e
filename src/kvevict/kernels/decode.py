"""Decode attention over heads that hold different numbers of entries (flash-decoding, ragged).

The heads are those of one sequence or of many, and a table says where the entries of each lie: they
stay where they are when sequences join a batch or leave it. They are cut into chunks of equal size,
so that a head with ten times the entries gets ten times the programs, and of a size that gives all
multiprocessors some; a second launch combines the chunks of each head. The query heads of a group
share a tile: keys and values are read once.

A table is int64 ``[7, kv_heads]``: the addresses of each head's first key and value, of its tail's
first key and value, how many entries it has before the tail, and, where these are quantised, the
addresses of the first scales of its keys and of its values (:mod:`kvevict.quantised`). Entries of
``head_dim`` numbers follow one another.

Codes are turned into q's type, in which all of them are exact, and multiplied as they are: the
scale of a key's channel goes to the query, that of a value to its weight.
"""

from __future__ import annotations

import math

from ..tensors import Tensor, namespace
from .chunks import KEYS, LONGEST, Chunks
from .codes import numbers
from .runtime import LOG2_E, check_heads, row_major, tl, triton

PROGRAM = {"STAGES": 3, "num_warps": 4}
NUMBERS = ("firsts", "prefix_chunks", "tail_chunks")  # for whose values nothing is compiled anew


def decode_attention(
    q: Tensor,
    table: Tensor,
    tail_lens: Tensor,
    chunks: Chunks,
    capacity: int,
    places: Tensor | None = None,
    kv_dtype: str | None = None,
    config: dict | None = None,
    parts: int | None = None,
) -> Tensor:
    """Attention of the newest tokens over compacted prompts and the tokens decoded since.

    Launches depend on shapes and numbers alone, so a CUDA graph can hold them while tails grow and
    other heads take the place of some.

    Args:
        q: ``[query_heads, new, head_dim]``, bfloat16 or float16 as the entries or the tails are:
            each sequence's ``new`` last tokens.
        table: the kv heads of one sequence after another.
        tail_lens: int32 ``[sequences]``, the tokens in their tails, the new ones included; new
            token i sees all but the ``new - 1 - i`` last.
        chunks: :func:`count_chunks` of the table's lengths; there may be more than these need.
        capacity: of the longest tail, in tokens.
        places: int32, which head each program reads, and behind those, as the last ``kv_heads``,
            each head's first program. A program beyond those needed reads the last head. Without
            it every program counts through all heads.
        kv_dtype: what all prefixes are quantised to, "int8" or "fp8"; None where none is.

    Returns:
        ``[query_heads, new, head_dim]``.

    Raises:
        InputError: a shape or type that the kernels do not take.
    """
    check_heads(q.unsqueeze(0), q.unsqueeze(0))
    q = row_major(q)
    query_heads, new, head_dim = q.shape
    kv_heads, sequences = table.shape[1], tail_lens.shape[0]
    group = query_heads // kv_heads
    tail_chunks = triton.cdiv(capacity, LONGEST)
    slots = chunks.count + kv_heads * tail_chunks
    rows = group * new
    float32 = namespace(q).float32
    partial = q.new_empty([slots, rows, head_dim], dtype=float32)
    partial_lse = q.new_empty([slots, rows], dtype=float32)
    out = q.new_empty([query_heads, new, head_dim])
    placed = places is not None
    places, firsts = (places, places.shape[0] - kv_heads) if placed else (table, 0)
    # A batch of another size compiles nothing anew, but for powers of two.
    padded = 1 if placed else triton.next_power_of_2(kv_heads)
    sizes = {"PLACED": placed, "KV_HEADS_PADDED": padded, "GROUP": group, "D": head_dim}
    _chunks[(slots,)](
        q, table, tail_lens, places, firsts, partial, partial_lse, kv_heads, new, *chunks,
        tail_chunks,
        *q.stride()[:2], LOG2_E / math.sqrt(head_dim), **sizes, SEQUENCE=kv_heads // sequences,
        ROWS=max(16, triton.next_power_of_2(rows)), KEYS=KEYS, TAIL=LONGEST,
        KIND=kv_dtype or "", PTX=isinstance(_chunks, triton.JITFunction), **{**PROGRAM, **(config or {})},
    )  # fmt: skip
    if parts is None:
        parts = min(64, max(8, triton.next_power_of_2(triton.cdiv(slots, kv_heads))))
    _combine[(kv_heads * rows,)](
        partial, partial_lse, table, places, firsts, out, kv_heads, rows, *chunks, tail_chunks,
        **sizes, PARTS=parts, num_warps=max(1, parts // 8),
    )  # fmt: skip
    return out


@triton.jit
def _address(table, which, head, kv_heads, dtype: tl.constexpr):
    """One of a head's addresses as a pointer to numbers of this type."""
    address = tl.load(table + which * kv_heads + head).to(tl.pointer_type(dtype))
    return tl.multiple_of(address, 16)  # so that entries are loaded whole


@triton.jit
def _prefix_chunks(table, kv_heads, entries, KV_HEADS_PADDED: tl.constexpr):
    """How many chunks each head has, and the first slot behind its own."""
    head = tl.arange(0, KV_HEADS_PADDED)
    length = tl.load(table + 4 * kv_heads + head, mask=head < kv_heads, other=0).to(tl.int32)
    count = tl.cdiv(length, entries)
    return count, tl.cumsum(count)


@triton.jit(do_not_specialize=NUMBERS)
def _chunks(q, table, tail_lens, places, firsts, partial, partial_lse, kv_heads, new, chunk,
            prefix_chunks, tail_chunks, q_head, q_token, log2_scale, PLACED: tl.constexpr,
            KV_HEADS_PADDED: tl.constexpr, SEQUENCE: tl.constexpr, GROUP: tl.constexpr,
            D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, TAIL: tl.constexpr,
            KIND: tl.constexpr, PTX: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    slot = tl.program_id(0)
    row = tl.arange(0, ROWS)
    token = row % new
    d = tl.arange(0, D)
    if slot < prefix_chunks:
        if PLACED:
            kv_head = tl.load(places + slot)
            first = tl.load(places + firsts + kv_head)
        else:
            count, last = _prefix_chunks(table, kv_heads, chunk, KV_HEADS_PADDED)
            kv_head = tl.sum((last <= slot).to(tl.int32))
            kv_head = tl.minimum(kv_head, kv_heads - 1)  # a slot to spare: no entries are left
            chosen = tl.arange(0, KV_HEADS_PADDED) == kv_head
            first = tl.sum(tl.where(chosen, last - count, 0))
        begin = (slot - first) * chunk
        entries = tl.load(table + 4 * kv_heads + kv_head).to(tl.int32)
        end = tl.minimum(begin + chunk, entries)
        visible = tl.zeros([ROWS], tl.int32) + entries
        part = 0
    else:
        kv_head = (slot - prefix_chunks) // tail_chunks
        begin = (slot - prefix_chunks) % tail_chunks * TAIL
        entries = tl.load(tail_lens + kv_head // SEQUENCE)
        end = tl.minimum(begin + TAIL, entries)
        visible = entries - (new - 1 - token)
        part = 2

    head = kv_head * GROUP + row // new
    rows = slot.to(tl.int64) * (GROUP * new) + row
    inside = row < GROUP * new
    if KIND != "":
        if slot < prefix_chunks:
            first, second, total, peak = _attend_codes(
                q + head[:, None] * q_head + token[:, None] * q_token, inside[:, None], table,
                kv_head, kv_heads, begin, end, log2_scale, D, ROWS, KEYS, KIND, PTX, STAGES,
            )  # fmt: skip
            share = 1.0 / tl.where(total > 0, total, 1.0)[:, None]
            at = partial + rows[:, None] * D + 2 * tl.arange(0, D // 2)[None, :]
            tl.store(at, first * share, mask=inside[:, None])
            tl.store(at + 1, second * share, mask=inside[:, None])
            lse = tl.where(total > 0, peak + tl.log2(total), float("-inf"))
            tl.store(partial_lse + rows, lse, mask=inside)
            return
    q_tile = tl.load(q + head[:, None] * q_head + token[:, None] * q_token + d[None, :],
                     mask=inside[:, None], other=0.0)  # fmt: skip
    mixed, total, peak = _attend(q_tile, q, table, part, kv_head, kv_heads, begin, end, visible,
                                 log2_scale, D, ROWS, KEYS, STAGES if KIND == "" else 2)  # fmt: skip
    seen = total > 0
    mixed = mixed / tl.where(seen, total, 1.0)[:, None]
    tl.store(partial + rows[:, None] * D + d[None, :], mixed, mask=inside[:, None])
    tl.store(partial_lse + rows, tl.where(seen, peak + tl.log2(total), float("-inf")), mask=inside)


@triton.jit
def _attend(q_tile, q, table, part, kv_head, kv_heads, begin, end, visible, log2_scale,
            D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
            STAGES: tl.constexpr):  # fmt: skip
    """The rows of a tile over a head's entries from ``begin`` to ``end``, KEYS at a time.

    Returns:
        The weighted values ``[ROWS, D]``, the weights' sums and the highest scores, in powers of 2,
        that both are relative to.
    """
    keys = _address(table, part, kv_head, kv_heads, q.dtype.element_ty)
    values = _address(table, part + 1, kv_head, kv_heads, q.dtype.element_ty)
    d = tl.arange(0, D)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, D], tl.float32)
    for start in tl.range(begin, end, KEYS, num_stages=STAGES):
        key = start + tl.arange(0, KEYS)
        inside = (key < end)[:, None]
        entry = key[:, None] * D + d[None, :]
        k = tl.load(keys + entry, mask=inside, other=0.0)
        scores = tl.dot(q_tile, k.T) * log2_scale
        scores = tl.where(key[None, :] < visible[:, None], scores, float("-inf"))
        weights, shrink, peak, total = _weights(scores, peak, total)
        v = tl.load(values + entry, mask=inside, other=0.0)
        mixed = tl.dot(weights.to(v.dtype), v, acc=mixed * shrink[:, None])
    return mixed, total, peak


@triton.jit
def _weights(scores, peak, total):
    """Of further scores the weights, how those so far shrink, the new peak and the new sums."""
    higher = tl.maximum(peak, tl.max(scores, axis=1))
    # A row that sees nothing yet would give -inf less -inf.
    base = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(peak - base)
    return weights, shrink, higher, total * shrink + tl.sum(weights, axis=1)


@triton.jit
def _attend_codes(q_rows, there, table, kv_head, kv_heads, begin, end, log2_scale, D: tl.constexpr,
                  ROWS: tl.constexpr, KEYS: tl.constexpr, KIND: tl.constexpr,
                  PTX: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """:func:`_attend` over codes, all of them visible; even and odd channels apart."""
    keys = _address(table, 0, kv_head, kv_heads, tl.int16)
    values = _address(table, 1, kv_head, kv_heads, tl.int16)
    key_scales = _address(table, 5, kv_head, kv_heads, tl.float16)
    value_scales = tl.load(table + 6 * kv_heads + kv_head).to(tl.pointer_type(tl.float16))
    pair = tl.arange(0, D // 2)
    q_first = tl.load(q_rows + 2 * pair[None, :], mask=there, other=0.0)
    q_second = tl.load(q_rows + 2 * pair[None, :] + 1, mask=there, other=0.0)
    # A group ahead, for the first product waits for them.
    of_channels = key_scales + begin // KEYS * D + 2 * pair
    of_first = tl.load(of_channels, mask=(pair < D) & (begin < end), other=0.0)
    of_second = tl.load(of_channels + 1, mask=(pair < D) & (begin < end), other=0.0)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    first = tl.zeros([ROWS, D // 2], tl.float32)
    second = tl.zeros([ROWS, D // 2], tl.float32)
    for start in tl.range(begin, end, KEYS, num_stages=STAGES):
        key = start + tl.arange(0, KEYS)
        inside = (key < end)[:, None]
        entry = key[:, None] * (D // 2) + pair[None, :]
        words = tl.load(keys + entry, mask=inside, other=0)
        of_entries = tl.load(value_scales + key, mask=key < end, other=0.0).to(tl.float32)
        scaled_first = (q_first * of_first[None, :].to(tl.float32)).to(q_first.dtype)
        scaled_second = (q_second * of_second[None, :].to(tl.float32)).to(q_first.dtype)
        of_channels += D
        further = (pair < D) & (start + KEYS < end)
        of_first = tl.load(of_channels, mask=further, other=0.0)
        of_second = tl.load(of_channels + 1, mask=further, other=0.0)
        k_first, k_second = numbers(words, KIND, q_first, PTX)
        scores = tl.dot(scaled_second, k_second.T, acc=tl.dot(scaled_first, k_first.T))
        scores = tl.where((key < end)[None, :], scores * log2_scale, float("-inf"))
        weights, shrink, peak, total = _weights(scores, peak, total)
        weights = (weights * of_entries[None, :]).to(q_first.dtype)
        words = tl.load(values + entry, mask=inside, other=0)
        v_first, v_second = numbers(words, KIND, q_first, PTX)
        first = tl.dot(weights, v_first, acc=first * shrink[:, None])
        second = tl.dot(weights, v_second, acc=second * shrink[:, None])
    return first, second, total, peak


@triton.jit(do_not_specialize=NUMBERS)
def _combine(partial, partial_lse, table, places, firsts, out, kv_heads, rows, chunk, prefix_chunks,
             tail_chunks, PLACED: tl.constexpr, KV_HEADS_PADDED: tl.constexpr, GROUP: tl.constexpr,
             D: tl.constexpr, PARTS: tl.constexpr):  # fmt: skip
    """One row of a head: its chunks of the prefix, then those of the tail."""
    kv_head, row = tl.program_id(0) // rows, tl.program_id(0) % rows
    if PLACED:
        count = tl.cdiv(tl.load(table + 4 * kv_heads + kv_head).to(tl.int32), chunk)
        first = tl.load(places + firsts + kv_head)
    else:
        counts, last = _prefix_chunks(table, kv_heads, chunk, KV_HEADS_PADDED)
        chosen = tl.arange(0, KV_HEADS_PADDED) == kv_head
        count = tl.sum(tl.where(chosen, counts, 0))
        first = tl.sum(tl.where(chosen, last, 0)) - count
    d = tl.arange(0, D)
    peak = tl.full([], -1e30, tl.float32)  # a number, so that chunks that saw nothing weigh 0
    total = tl.zeros([], tl.float32)
    mixed = tl.zeros([D], tl.float32)
    for start in range(0, count + tail_chunks, PARTS):
        part = start + tl.arange(0, PARTS)
        in_tail = prefix_chunks + kv_head * tail_chunks + part - count
        at = tl.where(part < count, first + part, in_tail).to(tl.int64) * rows + row
        inside = part < count + tail_chunks
        lse = tl.load(partial_lse + at, mask=inside, other=float("-inf"))
        own = tl.load(partial + at[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)
        higher = tl.maximum(peak, tl.max(lse))
        weights = tl.exp2(lse - higher)
        shrink = tl.exp2(peak - higher)
        total = total * shrink + tl.sum(weights)
        mixed = mixed * shrink + tl.sum(weights[:, None] * own, axis=0)
        peak = higher
    # out is [query_heads, new, head_dim], and a head's rows are [group, new].
    tl.store(out + tl.program_id(0).to(tl.int64) * D + d, mixed / total)
