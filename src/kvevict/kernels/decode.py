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
from .runtime import LOG2_E, check_heads, row_major, tl, triton

NUMBERS = ("firsts", "prefix_chunks", "tail_chunks")  # for whose values nothing is compiled anew


def decode_attention(
    q: Tensor,
    table: Tensor,
    tail_lens: Tensor,
    chunks: Chunks,
    capacity: int,
    places: Tensor | None = None,
    kv_dtype: str | None = None,
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
        KIND=kv_dtype or "", num_warps=4, num_stages=3,
    )  # fmt: skip
    _combine[(kv_heads * rows,)](
        partial, partial_lse, table, places, firsts, out, kv_heads, rows, *chunks, tail_chunks,
        **sizes, num_warps=8,
    )  # fmt: skip
    return out


@triton.jit
def _address(table, which, head, kv_heads, like):
    """One of a head's addresses as a pointer to entries of ``like``'s type."""
    address = tl.load(table + which * kv_heads + head).to(tl.pointer_type(like.dtype.element_ty))
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
            KIND: tl.constexpr):  # fmt: skip
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
    q_tile = tl.load(q + head[:, None] * q_head + token[:, None] * q_token + d[None, :],
                     mask=(row < GROUP * new)[:, None], other=0.0)  # fmt: skip
    if KIND == "":
        mixed, total, peak = _attend(q_tile, q, table, part, kv_head, kv_heads, begin, end, visible,
                                     log2_scale, D, ROWS, KEYS, "")  # fmt: skip
    elif slot < prefix_chunks:
        mixed, total, peak = _attend(q_tile, q, table, 0, kv_head, kv_heads, begin, end, visible,
                                     log2_scale, D, ROWS, KEYS, KIND)  # fmt: skip
    else:
        mixed, total, peak = _attend(q_tile, q, table, 2, kv_head, kv_heads, begin, end, visible,
                                     log2_scale, D, ROWS, KEYS, "")  # fmt: skip
    seen = total > 0
    mixed = mixed / tl.where(seen, total, 1.0)[:, None]
    at = slot.to(tl.int64) * (GROUP * new) + row
    inside = row < GROUP * new
    tl.store(partial + at[:, None] * D + d[None, :], mixed, mask=inside[:, None])
    tl.store(partial_lse + at, tl.where(seen, peak + tl.log2(total), float("-inf")), mask=inside)


@triton.jit
def _attend(q_tile, q, table, part, kv_head, kv_heads, begin, end, visible, log2_scale,
            D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
            KIND: tl.constexpr):  # fmt: skip
    """The rows of a tile over a head's entries from ``begin`` to ``end``, KEYS at a time.

    Returns:
        The weighted values ``[ROWS, D]``, the weights' sums and the highest scores, in powers of 2,
        that both are relative to.
    """
    keys = _address(table, part, kv_head, kv_heads, q)
    values = _address(table, part + 1, kv_head, kv_heads, q)
    if KIND != "":
        keys = tl.multiple_of(keys.to(tl.pointer_type(tl.int8)), 16)
        values = tl.multiple_of(values.to(tl.pointer_type(tl.int8)), 16)
        key_scales = tl.load(table + 5 * kv_heads + kv_head).to(tl.pointer_type(tl.float16))
        key_scales = tl.multiple_of(key_scales, 16)
        value_scales = tl.load(table + 6 * kv_heads + kv_head).to(tl.pointer_type(tl.float16))
    d = tl.arange(0, D)
    if KIND != "":  # a group ahead, for the first product waits for them
        of_channels = tl.load(key_scales + begin // KEYS * D + d, mask=(d < D) & (begin < end))
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, D], tl.float32)
    for start in range(begin, end, KEYS):
        key = start + tl.arange(0, KEYS)
        inside = (key < end)[:, None]
        entry = key[:, None] * D + d[None, :]
        k = tl.load(keys + entry, mask=inside, other=0)
        if KIND == "":
            scaled = q_tile
        else:
            k = _number(k, KIND, q_tile)
            of_entries = tl.load(value_scales + key, mask=key < end, other=0.0).to(tl.float32)
            scaled = (q_tile * of_channels[None, :].to(tl.float32)).to(q_tile.dtype)
            following = key_scales + (start // KEYS + 1) * D + d
            of_channels = tl.load(following, mask=(d < D) & (start + KEYS < end))
        scores = tl.dot(scaled, k.T) * log2_scale
        scores = tl.where(key[None, :] < visible[:, None], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        # A row that sees nothing yet would give -inf less -inf.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(weights, axis=1)
        v = tl.load(values + entry, mask=inside, other=0)
        if KIND != "":
            v = _number(v, KIND, q_tile)
            weights = weights * of_entries[None, :]
        mixed = tl.dot(weights.to(v.dtype), v, acc=mixed * shrink[:, None])
        peak = higher
    return mixed, total, peak


@triton.jit
def _number(codes, KIND: tl.constexpr, like):
    """Codes in ``like``'s type."""
    if KIND == "fp8":  # from float16 to bfloat16 at once would take the GPU's slowest units
        codes = codes.to(tl.float8e4nv, bitcast=True).to(tl.float16).to(tl.float32)
    return codes.to(like.dtype)


@triton.jit(do_not_specialize=NUMBERS)
def _combine(partial, partial_lse, table, places, firsts, out, kv_heads, rows, chunk, prefix_chunks,
             tail_chunks, PLACED: tl.constexpr, KV_HEADS_PADDED: tl.constexpr, GROUP: tl.constexpr,
             D: tl.constexpr):  # fmt: skip
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
    for start in range(0, count + tail_chunks, 64):
        part = start + tl.arange(0, 64)
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
