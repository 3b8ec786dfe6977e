"""A tile of query rows over a run of entries, exact or quantised: the inner loops of decoding.

What is carried from entries to entries: the weighted values, the weights' sums and the highest
scores, in powers of 2, that both are relative to.
"""

from __future__ import annotations

from .codes import numbers
from .runtime import tl, triton


@triton.jit
def address(table, which, head, kv_heads, dtype: tl.constexpr):
    """One of a head's addresses as a pointer to numbers of this type."""
    pointer = tl.load(table + which * kv_heads + head).to(tl.pointer_type(dtype))
    return tl.multiple_of(pointer, 16)  # so that entries are loaded whole


@triton.jit
def over_entries(mixed, total, peak, q_tile, keys, values, begin, end, visible, log2_scale,
                 D: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """Go on over a head's entries from ``begin`` to ``end``, KEYS at a time.

    Args:
        mixed: ``[ROWS, D]``.
        total, peak: ``[ROWS]``.
        q_tile: ``[ROWS, D]``.
        keys, values: the head's first ones.
        visible: ``[ROWS]``, how many entries each row sees.
    """
    d = tl.arange(0, D)
    for start in tl.range(begin, end, KEYS, num_stages=STAGES):
        key = start + tl.arange(0, KEYS)
        inside = (key < end)[:, None]
        entry = key[:, None] * D + d[None, :]
        k = tl.load(keys + entry, mask=inside, other=0.0)
        scores = tl.dot(q_tile, k.T) * log2_scale
        scores = tl.where(key[None, :] < tl.minimum(visible, end)[:, None], scores, float("-inf"))
        weights, shrink, peak, total = _weights(scores, peak, total)
        v = tl.load(values + entry, mask=inside, other=0.0)
        mixed = tl.dot(weights.to(v.dtype), v, acc=mixed * shrink[:, None])
    return mixed, total, peak


@triton.jit
def over_codes(q_rows, there, table, kv_head, kv_heads, begin, end, log2_scale, D: tl.constexpr,
               ROWS: tl.constexpr, KEYS: tl.constexpr, KIND: tl.constexpr, PTX: tl.constexpr,
               STAGES: tl.constexpr):  # fmt: skip
    """The same over a quantised prefix, from nothing; even and odd channels are multiplied apart.

    Args:
        q_rows: ``[ROWS, 1]``, where the rows of queries begin.
        there: ``[ROWS, 1]``, which there are.
    """
    keys = address(table, 0, kv_head, kv_heads, tl.int16)
    values = address(table, 1, kv_head, kv_heads, tl.int16)
    key_scales = address(table, 5, kv_head, kv_heads, tl.float16)
    value_scales = tl.load(table + 6 * kv_heads + kv_head).to(tl.pointer_type(tl.float16))
    pair = tl.arange(0, D // 2)
    even = tl.load(q_rows + 2 * pair[None, :], mask=there, other=0.0)
    odd = tl.load(q_rows + 2 * pair[None, :] + 1, mask=there, other=0.0)
    # Scales of channels come a group ahead, for the first product waits for them.
    of_channels = key_scales + begin // KEYS * D + 2 * pair
    of_even = tl.load(of_channels, mask=(pair < D) & (begin < end), other=0.0)
    of_odd = tl.load(of_channels + 1, mask=(pair < D) & (begin < end), other=0.0)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed_even = tl.zeros([ROWS, D // 2], tl.float32)
    mixed_odd = tl.zeros([ROWS, D // 2], tl.float32)
    for start in tl.range(begin, end, KEYS, num_stages=STAGES):
        key = start + tl.arange(0, KEYS)
        inside = (key < end)[:, None]
        entry = key[:, None] * (D // 2) + pair[None, :]
        words = tl.load(keys + entry, mask=inside, other=0)
        of_entries = tl.load(value_scales + key, mask=key < end, other=0.0).to(tl.float32)
        q_even = (even * of_even[None, :].to(tl.float32)).to(even.dtype)
        q_odd = (odd * of_odd[None, :].to(tl.float32)).to(odd.dtype)
        of_channels += D
        further = (pair < D) & (start + KEYS < end)
        of_even = tl.load(of_channels, mask=further, other=0.0)
        of_odd = tl.load(of_channels + 1, mask=further, other=0.0)
        k_even, k_odd = numbers(words, KIND, even, PTX)
        scores = tl.dot(q_odd, k_odd.T, acc=tl.dot(q_even, k_even.T)) * log2_scale
        scores = tl.where((key < end)[None, :], scores, float("-inf"))
        weights, shrink, peak, total = _weights(scores, peak, total)
        weights = (weights * of_entries[None, :]).to(even.dtype)
        v_even, v_odd = numbers(tl.load(values + entry, mask=inside, other=0), KIND, even, PTX)
        mixed_even = tl.dot(weights, v_even, acc=mixed_even * shrink[:, None])
        mixed_odd = tl.dot(weights, v_odd, acc=mixed_odd * shrink[:, None])
    return tl.join(mixed_even, mixed_odd).reshape(ROWS, D), total, peak


@triton.jit
def _weights(scores, peak, total):
    """Of further scores the weights, how those so far shrink, the new peaks and the new sums."""
    higher = tl.maximum(peak, tl.max(scores, axis=1))
    # A row that sees nothing yet would give -inf less -inf.
    base = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(peak - base)
    return weights, shrink, higher, total * shrink + tl.sum(weights, axis=1)
