"""Decode attention over heads that hold different numbers of entries (flash-decoding, ragged).

The heads are those of one sequence or of many, and a table says where the entries of each lie: they
stay where they are when sequences join a batch or leave it. They are cut into chunks of equal size,
so that a head with ten times the entries gets ten times the programs, and of a size that gives all
multiprocessors some; a second launch combines the chunks of each head. The program of a head's last
chunk goes on with the tail, as far as that is no longer than a chunk. The query heads of a group
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
from .attend import address, over_codes, over_entries
from .chunks import KEYS, Chunks
from .runtime import LOG2_E, await_last, check_heads, early, row_major, tl, triton

PROGRAM = {"STAGES": 3, "num_warps": 4}
PARTS = 16  # of a head that are combined at a time: one number, or sums would have several orders
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
        places: int32, which head each program reads, -1 for none, and behind those, as the last
            ``kv_heads``, each head's first program. Without it every program counts through all
            heads.
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
    tail_chunks = max(1, triton.cdiv(capacity, chunks.entries)) - 1  # beside a head's last chunk
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
    sizes = {"PLACED": placed, "KV_HEADS_PADDED": padded, "SEQUENCE": kv_heads // sequences}
    _chunks[(slots,)](
        q, table, tail_lens, places, firsts, partial, partial_lse, kv_heads, new, *chunks,
        tail_chunks, *q.stride()[:2], LOG2_E / math.sqrt(head_dim), **sizes, GROUP=group,
        D=head_dim, ROWS=max(16, triton.next_power_of_2(rows)), KEYS=KEYS, KIND=kv_dtype or "",
        PTX=isinstance(_chunks, triton.JITFunction), **{**early(q), **PROGRAM},
    )  # fmt: skip
    _combine[(kv_heads * rows,)](
        partial, partial_lse, table, tail_lens, places, firsts, out, kv_heads, rows, *chunks,
        tail_chunks, **sizes, D=head_dim, PARTS=PARTS, num_warps=PARTS // 8, **early(q),
    )  # fmt: skip
    return out


@triton.jit
def _prefix_chunks(table, kv_heads, entries, KV_HEADS_PADDED: tl.constexpr):
    """How many chunks each head has, and the first slot behind its own."""
    head = tl.arange(0, KV_HEADS_PADDED)
    length = tl.load(table + 4 * kv_heads + head, mask=head < kv_heads, other=0).to(tl.int32)
    count = tl.where(head < kv_heads, tl.maximum(tl.cdiv(length, entries), 1), 0)
    return count, tl.cumsum(count)


@triton.jit(do_not_specialize=NUMBERS)
def _chunks(q, table, tail_lens, places, firsts, partial, partial_lse, kv_heads, new, chunk,
            prefix_chunks, tail_chunks, q_head, q_token, log2_scale, PLACED: tl.constexpr,
            KV_HEADS_PADDED: tl.constexpr, SEQUENCE: tl.constexpr, GROUP: tl.constexpr,
            D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, KIND: tl.constexpr,
            PTX: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    await_last(PDL)
    slot = tl.program_id(0)
    if slot < prefix_chunks:
        if PLACED:
            kv_head = tl.load(places + slot)
            first = tl.load(places + firsts + tl.maximum(kv_head, 0))
        else:
            count, last = _prefix_chunks(table, kv_heads, chunk, KV_HEADS_PADDED)
            kv_head = tl.sum((last <= slot).to(tl.int32))
            chosen = tl.arange(0, KV_HEADS_PADDED) == kv_head
            first = tl.sum(tl.where(chosen, last - count, 0))
            kv_head = tl.where(kv_head < kv_heads, kv_head, -1)
        entries = tl.load(table + 4 * kv_heads + tl.maximum(kv_head, 0)).to(tl.int32)
        begin = (slot - first) * chunk
        # The tail follows where the prefix ends.
        part = tl.where(begin + chunk < entries, -1, 0)
    else:
        kv_head = (slot - prefix_chunks) // tail_chunks
        part = (slot - prefix_chunks) % tail_chunks + 1
        entries = 0
        begin = 0
    if kv_head < 0:  # a program to spare
        return
    end = tl.minimum(begin + chunk, entries)
    tail = tl.load(tail_lens + kv_head // SEQUENCE)
    tail_begin = tl.maximum(part, 0) * chunk
    tail_end = tl.where(part < 0, 0, tl.minimum(tail_begin + chunk, tail))
    if (begin >= end) & (tail_begin >= tail_end):
        return

    row = tl.arange(0, ROWS)
    d = tl.arange(0, D)
    token = row % new
    inside = row < GROUP * new
    q_rows = q + ((kv_head * GROUP + row // new) * q_head + token * q_token)[:, None]
    q_tile = tl.load(q_rows + d[None, :], mask=inside[:, None], other=0.0)
    dtype: tl.constexpr = q.dtype.element_ty
    if KIND == "":
        total = tl.zeros([ROWS], tl.float32)
        peak = tl.full([ROWS], float("-inf"), tl.float32)
        mixed = tl.zeros([ROWS, D], tl.float32)
        mixed, total, peak = over_entries(
            mixed, total, peak, q_tile, address(table, 0, kv_head, kv_heads, dtype),
            address(table, 1, kv_head, kv_heads, dtype), begin, end, tl.full([ROWS], end, tl.int32),
            log2_scale, D, KEYS, STAGES,
        )  # fmt: skip
    else:
        mixed, total, peak = over_codes(
            q_rows, inside[:, None], table, kv_head, kv_heads, begin, end, log2_scale, D, ROWS,
            KEYS, KIND, PTX, STAGES,
        )  # fmt: skip
    mixed, total, peak = over_entries(
        mixed, total, peak, q_tile, address(table, 2, kv_head, kv_heads, dtype),
        address(table, 3, kv_head, kv_heads, dtype), tail_begin, tail_end, tail - (new - 1 - token),
        log2_scale, D, KEYS, 2,
    )  # fmt: skip
    seen = total > 0
    mixed = mixed / tl.where(seen, total, 1.0)[:, None]
    at = slot.to(tl.int64) * (GROUP * new) + row
    tl.store(partial + at[:, None] * D + d[None, :], mixed, mask=inside[:, None])
    tl.store(partial_lse + at, tl.where(seen, peak + tl.log2(total), float("-inf")), mask=inside)


@triton.jit(do_not_specialize=NUMBERS)
def _combine(partial, partial_lse, table, tail_lens, places, firsts, out, kv_heads, rows, chunk,
             prefix_chunks, tail_chunks, PLACED: tl.constexpr, KV_HEADS_PADDED: tl.constexpr,
             SEQUENCE: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr,
             PDL: tl.constexpr):  # fmt: skip
    """One row of a head: its chunks of the prefix, then those of the tail."""
    await_last(PDL)
    kv_head, row = tl.program_id(0) // rows, tl.program_id(0) % rows
    if PLACED:
        entries = tl.load(table + 4 * kv_heads + kv_head).to(tl.int32)
        count = tl.maximum(tl.cdiv(entries, chunk), 1)
        first = tl.load(places + firsts + kv_head)
    else:
        counts, last = _prefix_chunks(table, kv_heads, chunk, KV_HEADS_PADDED)
        chosen = tl.arange(0, KV_HEADS_PADDED) == kv_head
        count = tl.sum(tl.where(chosen, counts, 0))
        first = tl.sum(tl.where(chosen, last, 0)) - count
    further = tl.maximum(tl.cdiv(tl.load(tail_lens + kv_head // SEQUENCE), chunk), 1) - 1
    d = tl.arange(0, D)
    peak = tl.full([], -1e30, tl.float32)  # a number, so that chunks that saw nothing weigh 0
    total = tl.zeros([], tl.float32)
    mixed = tl.zeros([D], tl.float32)
    for start in range(0, count + further, PARTS):
        part = start + tl.arange(0, PARTS)
        in_tail = prefix_chunks + kv_head * tail_chunks + part - count
        at = tl.where(part < count, first + part, in_tail).to(tl.int64) * rows + row
        inside = part < count + further
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
