"""Norms of values under a quadratic form, on the tensor cores.

v G vᵀ needs G more exactly than the 8 bits of a bfloat16. G is split into two halves, what the type
can hold and what is left over: two products are exact to twice the bits, and v is exact already.
"""

from __future__ import annotations

from ..tensors import Tensor, namespace
from .runtime import check_heads, row_major, tl, triton

HIDDEN = 64  # of W's columns that are multiplied at a time
SPLITS = 4  # of W's columns, so that heads fill a card


def projected_norms(values: Tensor, w: Tensor, weights: Tensor | None = None) -> Tensor:
    """‖v W_g‖₂ for every entry and every member of its head's group.

    Args:
        values: ``[kv_heads, tokens, head_dim]``, bfloat16 or float16.
        w: ``[kv_heads, group, head_dim, hidden]``, of the same type, any strides.
        weights: float32 ``[kv_heads, group, tokens]``, by which to sum the norms of a group.

    Returns:
        float32 ``[kv_heads, group, tokens]``, or with ``weights`` ``[kv_heads, tokens]``.

    Raises:
        InputError: a shape or type that the kernel does not take.
    """
    check_heads(values[None], values[None])
    heads, group, head_dim, hidden = w.shape
    float32 = namespace(values).float32
    span = triton.cdiv(triton.cdiv(hidden, SPLITS), HIDDEN) * HIDDEN
    parts = values.new_empty([SPLITS, heads * group, head_dim, head_dim], dtype=float32)
    columns = min(head_dim, 128)
    _gram[(head_dim // columns, SPLITS, heads * group)](
        w, parts, group, hidden, span, *w.stride(), D=head_dim, COLUMNS=columns, HIDDEN=HIDDEN,
        num_warps=8, num_stages=3,
    )  # fmt: skip
    high, low = (values.new_empty([heads, group, head_dim, head_dim]) for _ in range(2))
    scale = parts.new_empty([heads, group])
    _halve[(heads * group,)](
        parts, high, low, scale, heads * group, SPLITS=SPLITS, D=head_dim, ROWS=32, num_warps=8
    )
    values, tokens = row_major(values), values.shape[1]
    out = parts.new_empty([heads, group, tokens] if weights is None else [heads, tokens])
    tile = _tile(head_dim)
    _norms[(triton.cdiv(tokens, tile["TOKENS"]), heads)](
        values, high, low, scale, out if weights is None else weights.contiguous(), out, tokens,
        *values.stride()[:2], WEIGHTED=weights is not None, GROUP=group, D=head_dim, **tile,
    )  # fmt: skip
    return out


def _tile(head_dim: int) -> dict[str, int]:
    """Of v · G; G is read for each anew, and all of it has to fit into shared memory."""
    if head_dim > 128:
        return {"TOKENS": 128, "COLUMNS": 64, "num_warps": 8, "num_stages": 1}
    return {"TOKENS": 256, "COLUMNS": head_dim, "num_warps": 8, "num_stages": 2}


@triton.jit
def _gram(w, parts, group, hidden, span, w_head, w_member, w_row, w_column, D: tl.constexpr,
          COLUMNS: tl.constexpr, HIDDEN: tl.constexpr):  # fmt: skip
    """Some columns of W Wᵀ, of a part of what is summed."""
    block, split, member = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    w += (member // group).to(tl.int64) * w_head + (member % group).to(tl.int64) * w_member
    d, column = tl.arange(0, D), block * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([D, COLUMNS], tl.float32)
    end = tl.minimum((split + 1) * span, hidden)
    for start in range(split * span, end, HIDDEN):
        h = start + tl.arange(0, HIDDEN)
        along = h.to(tl.int64) * w_column
        inside = h < end
        a = tl.load(w + d[:, None] * w_row + along[None, :], mask=inside[None, :], other=0.0)
        b = tl.load(w + column[None, :] * w_row + along[:, None], mask=inside[:, None], other=0.0)
        total = tl.dot(a, b, acc=total)
    parts += (split * tl.num_programs(2) + member).to(tl.int64) * (D * D)
    tl.store(parts + d[:, None] * D + column[None, :], total)


@triton.jit
def _halve(parts, high, low, scale, members, SPLITS: tl.constexpr, D: tl.constexpr,
           ROWS: tl.constexpr):  # fmt: skip
    """Sum a matrix' parts, scaled so that neither half of a float16 overflows or vanishes."""
    member = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, ROWS)[:, None] * D + tl.arange(0, D)[None, :]
    most = tl.zeros([], tl.float32)
    for start in range(0, D, ROWS):
        most = tl.maximum(
            most, tl.max(tl.abs(_summed(parts, member, members, start, at, SPLITS, D)))
        )
    factor = tl.maximum(most, 1e-30) / 4096.0
    tl.store(scale + member, factor)
    for start in range(0, D, ROWS):
        total = _summed(parts, member, members, start, at, SPLITS, D) / factor
        upper = total.to(high.dtype.element_ty)
        lower = (total - upper.to(tl.float32)).to(high.dtype.element_ty)
        own = member * (D * D) + start * D + at
        tl.store(high + own, upper)
        tl.store(low + own, lower)


@triton.jit
def _summed(parts, member, members, start, at, SPLITS: tl.constexpr, D: tl.constexpr):
    total = tl.load(parts + member * (D * D) + start * D + at)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(parts + (split * members + member) * (D * D) + start * D + at)
    return total


@triton.jit
def _norms(values, high, low, scale, weights, out, tokens, v_head, v_token, WEIGHTED: tl.constexpr,
           GROUP: tl.constexpr, D: tl.constexpr, TOKENS: tl.constexpr,
           COLUMNS: tl.constexpr):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    inside = token < tokens
    d, column = tl.arange(0, D), tl.arange(0, COLUMNS)
    rows = values + head * v_head + token.to(tl.int64)[:, None] * v_token
    v = tl.load(rows + d[None, :], mask=inside[:, None], other=0.0)
    squares = tl.zeros([TOKENS], tl.float32)
    total = tl.zeros([TOKENS], tl.float32)
    for step in range(GROUP * (D // COLUMNS)):  # one loop, whose loads run ahead over the members
        form = head * GROUP + step // (D // COLUMNS)
        first = step % (D // COLUMNS) * COLUMNS
        at = form * D * D + d[:, None] * D + first + column[None, :]
        turned = tl.dot(v, tl.load(high + at))
        turned = tl.dot(v, tl.load(low + at), acc=turned)
        if COLUMNS == D:
            own = v
        else:
            own = tl.load(rows + first + column[None, :], mask=inside[:, None], other=0.0)
        squares += tl.sum(turned * own.to(tl.float32), axis=1)
        if first + COLUMNS == D:
            norms = tl.sqrt(tl.maximum(squares, 0.0) * tl.load(scale + form))
            if WEIGHTED:
                total += norms * tl.load(weights + form * tokens + token, mask=inside, other=0.0)
            else:
                tl.store(out + form * tokens + token, norms, mask=inside)
            squares = tl.zeros([TOKENS], tl.float32)
    if WEIGHTED:
        tl.store(out + head * tokens + token, total, mask=inside)
