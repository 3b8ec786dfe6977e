"""Attention written out densely, as in the textbook. O(N²) memory: for tests."""

from __future__ import annotations

from kvevict.attention.base import ColumnStatistic, Output, check
from kvevict.tensors import Tensor, namespace


def attend(q: Tensor, k: Tensor, v: Tensor, statistics: tuple[ColumnStatistic, ...] = ()) -> Output:
    """Causal grouped-query attention in the precision of its inputs.

    Shapes as in :func:`kvevict.attention.attend`; the query rows are the last ones of the keys.
    """
    check(q, k, v)
    ns = namespace(q)
    batch, query_heads, tokens, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    grouped = q.reshape(batch, kv_heads, -1, tokens, head_dim)
    scores = grouped @ k.unsqueeze(2).swapaxes(-1, -2) * head_dim**-0.5
    rows = ns.arange(keys - tokens, keys, device=q.device).unsqueeze(-1)
    visible = ns.arange(keys, device=q.device) <= rows
    scores = scores.masked_fill(~visible, -float("inf"))
    peak = scores.amax(dim=-1, keepdim=True)
    lse = peak + (scores - peak).exp().sum(-1, keepdim=True).log()
    weights = (scores - lse).exp()
    out = weights @ v.unsqueeze(2)

    columns = {}
    for statistic in statistics:
        first = statistic.first_row(tokens)
        a, seen = weights[:, :, :, first:], visible[first:]
        if statistic.reduce == "count_below_mean":
            a = a.sum(2, keepdim=True) if statistic.per_kv_head else a
            total = query_heads // kv_heads if statistic.per_kv_head else 1
            mean = total / (rows[first:] + 1).to(a.dtype)
            value = ((a < mean) & seen).to(a.dtype).sum(-2)
        else:
            value = (a if statistic.reduce == "sum" else a * a).sum(-2)
            value = value.sum(2, keepdim=True) if statistic.per_kv_head else value
        columns[statistic] = value.reshape(batch, -1, keys)
    return Output(
        out.reshape(batch, query_heads, tokens, head_dim),
        lse.reshape(batch, query_heads, tokens),
        columns,
    )
