"""Norms of values under a quadratic form, on the tensor cores.

v G vᵀ needs G more exactly than the 8 bits of a bfloat16. G is split into two halves, what the type
can hold and what is left over: two products are exact to twice the bits, and v is exact already.
"""

from __future__ import annotations

from ..tensors import Tensor, namespace
from .runtime import check_heads, row_major, tl, triton

TOKENS, COLUMNS = 128, 64  # a tile of v · G


def quadratic_norms(values: Tensor, gram: Tensor) -> Tensor:
    """√(v G_g vᵀ) for every entry and every member of its head's group.

    Args:
        values: ``[kv_heads, tokens, head_dim]``, bfloat16 or float16.
        gram: float32 ``[kv_heads, group, head_dim, head_dim]``, symmetric, positive semidefinite.

    Returns:
        float32 ``[kv_heads, group, tokens]``.

    Raises:
        InputError: a shape or type that the kernel does not take.
    """
    check_heads(values[None], values[None])
    values = row_major(values)
    heads, tokens, head_dim = values.shape
    group = gram.shape[1]
    # Far from both ends of a float16: neither half may overflow or vanish.
    scale = gram.abs().amax(dim=[-2, -1], keepdim=True).clamp(min=1e-30) / 2**12
    gram = gram / scale
    high = gram.to(values.dtype).contiguous()
    low = (gram - high.float()).to(values.dtype).contiguous()
    out = gram.new_empty([heads, group, tokens], dtype=namespace(gram).float32)
    _norms[(triton.cdiv(tokens, TOKENS), heads)](
        values, high, low, scale, out, tokens, *values.stride()[:2],
        GROUP=group, D=head_dim, TOKENS=TOKENS, COLUMNS=COLUMNS, num_warps=8,
        num_stages=3 if head_dim <= 128 else 1,  # shared memory holds no more
    )  # fmt: skip
    return out


@triton.jit
def _norms(values, high, low, scale, out, tokens, v_head, v_token, GROUP: tl.constexpr,
           D: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    inside = token < tokens
    d, column = tl.arange(0, D), tl.arange(0, COLUMNS)
    rows = values + head * v_head + token.to(tl.int64)[:, None] * v_token
    v = tl.load(rows + d[None, :], mask=inside[:, None], other=0.0)
    squares = tl.zeros([TOKENS], tl.float32)
    for step in range(GROUP * (D // COLUMNS)):  # one loop, whose loads run ahead over the members
        form = head * GROUP + step // (D // COLUMNS)
        first = step % (D // COLUMNS) * COLUMNS
        at = form * D * D + d[:, None] * D + first + column[None, :]
        turned = tl.dot(v, tl.load(high + at))
        turned = tl.dot(v, tl.load(low + at), acc=turned)
        own = tl.load(rows + first + column[None, :], mask=inside[:, None], other=0.0)
        squares += tl.sum(turned * own.to(tl.float32), axis=1)
        if first + COLUMNS == D:
            norms = tl.sqrt(tl.maximum(squares, 0.0) * tl.load(scale + form))
            tl.store(out + form * tokens + token, norms, mask=inside)
            squares = tl.zeros([TOKENS], tl.float32)
