"""NACL's selection and the compaction of keys and values, on the device in a few launches.

Scores become unsigned integers of the same order, a threshold is found by radix selection (five
bits at a time, one program a head), and a last pass writes the positions in order: no sort, no
atomics, no number that the host has to see.
"""

from __future__ import annotations

from ..errors import InputError
from ..tensors import Tensor, namespace
from .runtime import row_major, tl, triton

BLOCK = 16384  # positions that a program looks at together
TOP = tl.constexpr(0xFFFFFFFF)  # above the order of every number


def select(scores: Tensor, sinks: int, recent: int, top_k: int, draw: int, keys: Tensor) -> Tensor:
    """Choose what each head keeps: protected positions, the best scores, and a random draw.

    The draw adds Gumbel noise to the scores that are left and takes the largest, which is to draw
    without replacement with probability ∝ exp(score) (NACL, section 3.3). The noise is a hash of
    the head's key and the position: the same on any device.

    Args:
        scores: float32 ``[batch, kv_heads, tokens]``, finite; of equals the lower position wins.
        sinks, recent: how many of the first and last positions are kept whatever their score.
        top_k: how many of the others to keep for their score.
        draw: how many to draw from the rest.
        keys: int64 ``[batch · kv_heads]``, a number below 2³² for each head.

    Returns:
        int32 ``[batch, kv_heads, sinks + top_k + draw + recent]``, ascending.

    Raises:
        InputError: a negative part, or parts that add up to more than there are tokens.
    """
    batch, kv_heads, tokens = scores.shape
    best, kept = sinks + recent + top_k, sinks + recent + top_k + draw
    if min(sinks, recent, top_k, draw) < 0 or kept > tokens:
        raise InputError(
            f"cannot keep {sinks} sinks, {top_k} best, {draw} drawn and {recent} recent of "
            f"{tokens} positions"
        )
    int32 = namespace(scores).int32
    heads = batch * kv_heads
    plain = scores.new_empty([heads, tokens], dtype=int32)
    noisy = scores.new_empty([heads, tokens], dtype=int32)
    chosen = scores.new_empty([batch, kv_heads, kept], dtype=int32)
    _orders[(triton.cdiv(tokens, 1024), heads)](
        scores.contiguous(), keys, plain, noisy, tokens, sinks, tokens - recent, BLOCK=1024
    )
    _choose[(heads,)](plain, noisy, chosen, tokens, best, kept, BLOCK=BLOCK, num_warps=16)
    return chosen


def ragged_positions(keep: Tensor, starts: Tensor, total: int) -> Tensor:
    """The positions that a mask keeps, head after head.

    Args:
        keep: bool ``[batch, kv_heads, tokens]``.
        starts: int32 ``[batch · kv_heads + 1]``: 0, then the running sum of what each head keeps.
        total: the last of ``starts``.

    Returns:
        int32 ``[total]``, ascending within each head.
    """
    batch, kv_heads, tokens = keep.shape
    out = keep.new_empty([total], dtype=namespace(keep).int32)
    _kept[(batch * kv_heads,)](keep.contiguous(), starts, out, tokens, BLOCK=BLOCK, num_warps=16)
    return out


def gather(x: Tensor, indices: Tensor) -> Tensor:
    """The chosen entries of every head.

    Args:
        x: keys or values ``[batch, kv_heads, tokens, head_dim]``.
        indices: int32 ``[batch, kv_heads, kept]``, positions.

    Returns:
        ``[batch, kv_heads, kept, head_dim]``.
    """
    batch, kv_heads, kept = indices.shape
    out = x.new_empty([batch, kv_heads, kept, x.shape[3]])
    return _gather_into(out, x, indices.contiguous(), indices, kept, kept)


def gather_ragged(x: Tensor, positions: Tensor, starts: Tensor, longest: int) -> Tensor:
    """The chosen entries of heads that keep different numbers of them.

    Args:
        x: keys or values ``[batch, kv_heads, tokens, head_dim]``.
        positions: int32 ``[total]``, those of head h at ``starts[h]`` to ``starts[h + 1]``.
        starts: int32 ``[batch · kv_heads + 1]``.
        longest: the most that any head keeps.

    Returns:
        ``[total, head_dim]``.
    """
    out = x.new_empty([positions.shape[0], x.shape[3]])
    return _gather_into(out, x, positions, starts, longest, 0)


def _gather_into(
    out: Tensor, x: Tensor, positions: Tensor, starts: Tensor, longest: int, kept: int
) -> Tensor:
    """Fill ``out``; ``kept`` entries a head, or where that is 0 as many as ``starts`` says."""
    x = row_major(x)
    batch, kv_heads, _, head_dim = x.shape
    rows = 64
    if longest:
        _gather[(triton.cdiv(longest, rows), batch * kv_heads)](
            x, positions, starts, out, kept, kv_heads, *x.stride()[:3],
            RAGGED=kept == 0, D=head_dim, ROWS=rows,
        )  # fmt: skip
    return out


@triton.jit
def _orders(scores, keys, plain, noisy, tokens, sinks, recent_from, BLOCK: tl.constexpr):
    """Scores, without and with Gumbel noise, as integers of their order; protected ones on top."""
    head = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = position < tokens
    # Adding 0 turns -0 into 0, its equal.
    score = tl.load(scores + head * tokens + position, mask=inside, other=0.0) + 0.0
    uniform = _uniform(position, tl.load(keys + head))
    protected = (position < sinks) | (position >= recent_from)
    order = tl.where(protected, TOP, _ascending(score))
    tl.store(plain + head * tokens + position, order.to(tl.int32, bitcast=True), mask=inside)
    order = tl.where(protected, TOP, _ascending(score - tl.log(-tl.log(uniform))))
    tl.store(noisy + head * tokens + position, order.to(tl.int32, bitcast=True), mask=inside)


@triton.jit
def _uniform(position, key):
    """A number in (0, 1) that depends on nothing but a position and a head's key."""
    x = position.to(tl.uint32) ^ key.to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x45D9F3B
    x = x ^ (x >> 16)
    return ((x >> 9).to(tl.float32) + 0.5) * (1.0 / 8388608.0)


@triton.jit
def _ascending(x):
    """Unsigned integers in the order of these float32."""
    bits = x.to(tl.uint32, bitcast=True)
    return tl.where(bits >= 0x80000000, ~bits, bits | 0x80000000)


@triton.jit
def _choose(plain, noisy, chosen, tokens, best, kept, BLOCK: tl.constexpr):
    head = tl.program_id(0).to(tl.int64)
    plain += head * tokens
    noisy += head * tokens
    # What is kept for its score goes to the top of the noisy order: one more selection has it all.
    threshold, ties = _threshold(plain, tokens, best, BLOCK)
    for start in range(0, tokens, BLOCK):
        position = start + tl.arange(0, BLOCK)
        order = _load_order(plain, position, tokens)
        taken, ties = _above(order, threshold, ties, position < tokens)
        tl.store(noisy + position, -1, mask=taken)
    tl.debug_barrier()  # other threads read what was written here

    threshold, ties = _threshold(noisy, tokens, kept, BLOCK)
    chosen += head * kept
    for start in range(0, tokens, BLOCK):
        position = start + tl.arange(0, BLOCK)
        order = _load_order(noisy, position, tokens)
        taken, ties = _above(order, threshold, ties, position < tokens)
        chosen = _append(chosen, position, taken)


@triton.jit
def _threshold(orders, tokens, count, BLOCK: tl.constexpr):
    """The count-th largest of a head's orders, and how many of its equals belong to the count."""
    threshold = tl.zeros([], tl.uint32)
    for digit in tl.static_range(6):
        threshold, count = _settle(orders, tokens, threshold, count, 27 - 5 * digit, 31, BLOCK)
    return _settle(orders, tokens, threshold, count, 0, 3, BLOCK)


@triton.jit
def _settle(orders, tokens, threshold, count, SHIFT: tl.constexpr, LARGEST: tl.constexpr,
            BLOCK: tl.constexpr):  # fmt: skip
    """One more digit of the threshold: a histogram over those that agree with the ones before."""
    settled = (0xFFFFFFFF << (SHIFT + 5 if SHIFT else 2)) & 0xFFFFFFFF
    bins = tl.zeros([32], tl.int32)
    for start in range(0, tokens, BLOCK):
        position = start + tl.arange(0, BLOCK)
        order = _load_order(orders, position, tokens)
        agrees = ((order ^ threshold) & settled) == 0
        digit = ((order >> SHIFT) & LARGEST).to(tl.int32)
        bins += tl.histogram(digit, 32, mask=agrees & (position < tokens))
    higher = tl.sum(bins) - tl.cumsum(bins)
    digit = tl.minimum(tl.sum((higher >= count).to(tl.int32)), LARGEST)
    count -= tl.sum(tl.where(tl.arange(0, 32) == digit, higher, 0))
    return threshold | digit.to(tl.uint32) << SHIFT, count


@triton.jit
def _load_order(orders, position, tokens):
    return tl.load(orders + position, mask=position < tokens, other=0).to(tl.uint32, bitcast=True)


@triton.jit
def _above(order, threshold, ties, inside):
    """Who is above the threshold or among the first ``ties`` at it, and the ties that remain."""
    equal = ((order == threshold) & inside).to(tl.int32)
    taken = inside & ((order > threshold) | ((equal == 1) & (tl.cumsum(equal) <= ties)))
    return taken, tl.maximum(ties - tl.sum(equal), 0)


@triton.jit
def _append(out, position, taken):
    """Write the taken positions one after another; the pointer behind them."""
    count = taken.to(tl.int32)
    tl.store(out + tl.cumsum(count) - 1, position, mask=taken)
    return out + tl.sum(count)


@triton.jit
def _kept(keep, starts, out, tokens, BLOCK: tl.constexpr):
    head = tl.program_id(0).to(tl.int64)
    out += tl.load(starts + head)
    for start in range(0, tokens, BLOCK):
        position = start + tl.arange(0, BLOCK)
        taken = tl.load(keep + head * tokens + position, mask=position < tokens, other=0)
        out = _append(out, position, taken)


@triton.jit
def _gather(x, positions, starts, out, kept, kv_heads, x_batch, x_head, x_token,
            RAGGED: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    begin, end = head * kept, (head + 1) * kept
    if RAGGED:
        begin, end = tl.load(starts + head).to(tl.int64), tl.load(starts + head + 1).to(tl.int64)
    row = begin + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (row < end)[:, None]
    position = tl.load(positions + row, mask=row < end, other=0).to(tl.int64)
    d = tl.arange(0, D)[None, :]
    x += head // kv_heads * x_batch + head % kv_heads * x_head
    entry = tl.load(x + position[:, None] * x_token + d, mask=inside)
    tl.store(out + row[:, None] * D + d, entry, mask=inside)
