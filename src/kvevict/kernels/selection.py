"""Top-k, compaction and noise on the device, in a few launches: nothing here waits for a number.

The k-th largest of a row is found by radix selection: scores become unsigned integers of the same
order, and four passes settle eight bits each, the highest first. A row is cut into chunks for as
many programs; from launch to launch they meet in a table of integer counts, whose sums do not
depend on who comes first.
"""

from __future__ import annotations

from ..tensors import Tensor, integers, namespace
from .runtime import tl, triton

CHUNK, WARPS = 4096, 8  # positions that a program looks at, and by how many
BITS = tl.constexpr(8)
DIGITS = tl.constexpr(256)


def top_k(scores: Tensor, counts: list[int] | Tensor) -> Tensor:
    """Mark the ``counts[r]`` largest scores of each row r; ties go to the lower position.

    Args:
        scores: float32 ``[rows, n]``, without NaN.

    Returns:
        bool ``[rows, n]``.
    """
    ns = namespace(scores)
    rows, n = scores.shape
    chunks = triton.cdiv(n, CHUNK)
    scores = scores.contiguous()
    wanted = integers(counts, ns.int32, like=scores)
    table = scores.new_zeros([rows, 4, 256], dtype=ns.int32)
    equals = scores.new_empty([rows, chunks], dtype=ns.int32)
    mask = scores.new_empty([rows, n], dtype=ns.bool)
    grid, size = (chunks, rows), {"CHUNK": CHUNK, "num_warps": WARPS}
    for settled in range(4):
        _histogram[grid](scores, wanted, table, n, SETTLED=settled, **size)
    _equals[grid](scores, wanted, table, equals, n, **size)
    padded = triton.next_power_of_2(chunks)
    _mark[grid](scores, wanted, table, equals, mask, n, CHUNKS=padded, **size)
    return mask


def positions(mask: Tensor, total: int) -> Tensor:
    """Where a mask is set, in order.

    Args:
        mask: bool ``[n]``.
        total: how many are set.

    Returns:
        int32 ``[total]``.
    """
    (n,) = mask.shape
    chunks = triton.cdiv(n, CHUNK)
    mask = mask.contiguous()
    int32 = namespace(mask).int32
    counts = mask.new_empty([chunks], dtype=int32)
    # A mask that breaks its promise leaves zeros here, never an address of something else.
    out = mask.new_zeros([total], dtype=int32)
    size = {"CHUNK": CHUNK, "num_warps": WARPS}
    _count[(chunks,)](mask, counts, n, **size)
    padded = triton.next_power_of_2(chunks)
    _positions[(chunks,)](mask, counts, out, n, total, CHUNKS=padded, **size)
    return out


def take(keys: Tensor, values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The same rows of two matrices: ``x.index_select(0, rows)`` of each, in one launch.

    Args:
        keys, values: ``[n, width]``, of one type.
        rows: int32 ``[total]``.
    """
    keys, values = keys.contiguous(), values.contiguous()
    total, width = rows.shape[0], keys.shape[1]
    own_keys, own_values = keys.new_empty([total, width]), keys.new_empty([total, width])
    if total:
        _take[(triton.cdiv(total, 64),)](
            keys, values, rows, own_keys, own_values, total,
            WIDTH=width, PADDED=triton.next_power_of_2(width), ROWS=64,
        )  # fmt: skip
    return own_keys, own_values


def uniform(keys: Tensor, length: int) -> Tensor:
    """The numbers of :func:`kvevict.noise.uniform`.

    Args:
        keys: int64 ``[rows]``, below 2³².

    Returns:
        float32 ``[rows, length]``.
    """
    rows = keys.shape[0]
    out = keys.new_empty([rows, length], dtype=namespace(keys).float32)
    _uniform[(triton.cdiv(length, 1024), rows)](keys, out, length, BLOCK=1024)
    return out


@triton.jit
def _orders(scores, n, CHUNK: tl.constexpr):
    """A chunk of a row as unsigned integers in the order of its float32; which are there."""
    position = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    inside = position < n
    scores += tl.program_id(1).to(tl.int64) * n
    # Adding 0 turns -0 into 0, its equal.
    bits = (tl.load(scores + position, mask=inside, other=0.0) + 0.0).to(tl.uint32, bitcast=True)
    return tl.where(bits >= 0x80000000, ~bits, bits | 0x80000000), inside


@triton.jit
def _settle(wanted, table, SETTLED: tl.constexpr):
    """The first SETTLED digits of the wanted-th largest, and how many to take of those with them.

    The table counts, for each digit, the numbers that agree with all digits before it.
    """
    threshold = tl.zeros([], tl.uint32)
    count = tl.load(wanted + tl.program_id(1))
    table += tl.program_id(1) * (4 * DIGITS)
    each = tl.arange(0, DIGITS)
    for digit in tl.static_range(SETTLED):
        bins = tl.load(table + digit * DIGITS + each)
        higher = tl.sum(bins) - tl.cumsum(bins)
        value = tl.minimum(tl.sum((higher >= count).to(tl.int32)), DIGITS - 1)
        count -= tl.sum(tl.where(each == value, higher, 0))
        threshold |= value.to(tl.uint32) << (32 - BITS * (digit + 1))
    return threshold, count


@triton.jit
def _histogram(scores, wanted, table, n, SETTLED: tl.constexpr, CHUNK: tl.constexpr):
    order, inside = _orders(scores, n, CHUNK)
    if SETTLED:
        threshold, _ = _settle(wanted, table, SETTLED)
        inside &= (order ^ threshold) >> (32 - BITS * SETTLED) == 0
    digit = (order >> (32 - BITS * (SETTLED + 1))) & (DIGITS - 1)
    bins = tl.histogram(digit.to(tl.int32), DIGITS, mask=inside)
    each = tl.arange(0, DIGITS)
    table += (tl.program_id(1) * 4 + SETTLED) * DIGITS
    tl.atomic_add(table + each, bins, mask=bins > 0)


@triton.jit
def _equals(scores, wanted, table, equals, n, CHUNK: tl.constexpr):
    """How many of each chunk are the threshold itself."""
    order, inside = _orders(scores, n, CHUNK)
    threshold, _ = _settle(wanted, table, 4)
    count = tl.sum(((order == threshold) & inside).to(tl.int32))
    tl.store(equals + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), count)


@triton.jit
def _mark(scores, wanted, table, equals, mask, n, CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    order, inside = _orders(scores, n, CHUNK)
    threshold, ties = _settle(wanted, table, 4)
    equal = ((order == threshold) & inside).to(tl.int32)
    earlier = _before(equals + tl.program_id(1) * tl.num_programs(0), CHUNKS)
    taken = (order > threshold) | ((equal == 1) & (earlier + tl.cumsum(equal) <= ties))
    mask += tl.program_id(1).to(tl.int64) * n
    position = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    tl.store(mask + position, taken, mask=inside)


@triton.jit
def _before(counts, CHUNKS: tl.constexpr):
    """The sum of the counts of all chunks before this program's."""
    chunk = tl.arange(0, CHUNKS)
    return tl.sum(tl.load(counts + chunk, mask=chunk < tl.program_id(0), other=0))


@triton.jit
def _count(mask, counts, n, CHUNK: tl.constexpr):
    position = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    taken = tl.load(mask + position, mask=position < n, other=0)
    tl.store(counts + tl.program_id(0), tl.sum(taken.to(tl.int32)))


@triton.jit
def _positions(mask, counts, out, n, total, CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    position = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    taken = tl.load(mask + position, mask=position < n, other=0).to(tl.int32)
    place = _before(counts, CHUNKS) + tl.cumsum(taken) - 1
    tl.store(out + place, position, mask=(taken == 1) & (place < total))


@triton.jit(do_not_specialize=["total"])  # or it is compiled anew for some of them
def _take(keys, values, rows, own_keys, own_values, total, WIDTH: tl.constexpr,
          PADDED: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = tl.load(rows + place, mask=place < total, other=0).to(tl.int64)
    column = tl.arange(0, PADDED)[None, :]
    inside = (place < total)[:, None] & (column < WIDTH)
    source, target = row[:, None] * WIDTH + column, place[:, None] * WIDTH + column
    key, value = tl.load(keys + source, mask=inside), tl.load(values + source, mask=inside)
    tl.store(own_keys + target, key, mask=inside)
    tl.store(own_values + target, value, mask=inside)


@triton.jit
def _uniform(keys, out, length, BLOCK: tl.constexpr):
    row = tl.program_id(1)
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = position.to(tl.uint32) ^ tl.load(keys + row).to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x45D9F3B
    x = x ^ (x >> 16)
    number = ((x >> 9).to(tl.float32) + 0.5) * (1.0 / 8388608.0)
    tl.store(out + row.to(tl.int64) * length + position, number, mask=position < length)
