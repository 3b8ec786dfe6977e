"""Attention in blocks of query rows, with the framework's own operations: for GPUs without flash.

A block of rows is taken against all the keys it sees at once, so its softmax is exact without
rescaling, and the column statistics come from the very weights that make the output: one pass,
no second product of queries and keys. The number of blocks grows as N while their size does not:
memory beyond input and output is O(N).

Scores are float32 whatever the inputs are: bfloat16 rounds a score of 100 by up to a quarter, and
its weight by as much. Keys and queries are widened before their product, not scaled: what a
half-precision number is, a tensor core's TF32 holds.
"""

from __future__ import annotations

from ..tensors import Tensor, matmul_nt, namespace
from .base import ColumnStatistic, Output, WindowRows, check

BLOCK = 1 << 25  # scores held at a time, 128 MiB: the fewest launches that memory allows
FEWEST_ROWS = 16
FEWEST_COLUMN_ROWS = 64  # where the weights are all that is held: 1 GiB at 131,072 keys of 32 heads


def attend(q: Tensor, k: Tensor, v: Tensor, statistics: tuple[ColumnStatistic, ...] = ()) -> Output:
    """Causal grouped-query attention; shapes as in :func:`kvevict.attention.attend`."""
    check(q, k, v)
    ns = namespace(q)
    batch, query_heads, tokens, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    group = query_heads // kv_heads
    grouped = q.reshape(batch, kv_heads, group, tokens, head_dim)
    wide, scale = k.float(), head_dim**-0.5
    out = ns.empty((batch, kv_heads, group, tokens, head_dim), dtype=q.dtype, device=q.device)
    lse = ns.empty((batch, kv_heads, group, tokens), dtype=ns.float32, device=q.device)
    columns = {
        statistic: ns.zeros(
            (batch, kv_heads, 1 if statistic.per_kv_head else group, keys),
            dtype=ns.float32,
            device=q.device,
        )
        for statistic in statistics
    }
    rows = min(tokens, max(FEWEST_ROWS, BLOCK // (batch * query_heads * keys)))
    above = ns.triu(ns.ones((rows, rows), dtype=ns.bool, device=q.device), 1)
    for start in range(0, tokens, rows):
        stop = min(start + rows, tokens)
        size, seen = stop - start, keys - tokens + stop
        queries = grouped[..., start:stop, :].float().reshape(batch, kv_heads, -1, head_dim)
        scores = matmul_nt(queries, wide[:, :, :seen]) * scale
        scores = scores.reshape(batch, kv_heads, group, size, seen)
        corner = scores[..., -size:]
        scores[..., -size:] = corner.masked_fill(above[:size, :size], -float("inf"))
        peak = scores.amax(-1)
        exps = (scores - peak.unsqueeze(-1)).exp_()
        total = exps.sum(-1)
        inverse = 1 / total
        # Weights, not their exponentials: a sum of many of those is more than a float16 holds.
        weights = (exps * inverse.unsqueeze(-1)).to(v.dtype)
        mixed = weights.reshape(batch, kv_heads, -1, seen) @ v[:, :, :seen]
        out[..., start:stop, :] = mixed.reshape(batch, kv_heads, group, size, head_dim)
        lse[..., start:stop] = peak + total.log()
        for statistic, column in columns.items():
            skip = max(0, statistic.first_row(tokens) - start)
            if skip < size:
                first_key = keys - tokens + start + skip
                column[..., :seen] += _reduce(
                    statistic, exps[..., skip:, :], inverse[..., skip:], first_key
                )
    return Output(
        out.reshape(batch, query_heads, tokens, head_dim),
        lse.reshape(batch, query_heads, tokens),
        {s: column.reshape(batch, -1, keys) for s, column in columns.items()},
    )


def columns_from_lse(
    q: Tensor, k: Tensor, lse: Tensor, statistics: tuple[ColumnStatistic, ...]
) -> dict[ColumnStatistic, Tensor]:
    """The statistics alone, for a kernel that returned its log-sum-exp: only their rows are done.

    Args:
        q: ``[batch, query_heads, tokens, head_dim]``, k: ``[batch, kv_heads, keys, head_dim]``.
        lse: ``[batch, query_heads, tokens]``, natural logarithm, of the scaled scores.
    """
    ns = namespace(q)
    batch, query_heads, tokens, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    group = query_heads // kv_heads
    grouped = q.reshape(batch, kv_heads, group, tokens, head_dim)
    lse = lse.reshape(batch, kv_heads, group, tokens)
    k, scale = k.float(), head_dim**-0.5
    columns = {}
    for statistic in statistics:
        column = ns.zeros(
            (batch, kv_heads, 1 if statistic.per_kv_head else group, keys),
            dtype=ns.float32,
            device=q.device,
        )
        rows = min(tokens, max(FEWEST_COLUMN_ROWS, BLOCK // (batch * query_heads * keys)))
        above = ns.triu(ns.ones((rows, rows), dtype=ns.bool, device=q.device), 1)
        for start in range(statistic.first_row(tokens), tokens, rows):
            stop = min(start + rows, tokens)
            size, seen = stop - start, keys - tokens + stop
            some = grouped[..., start:stop, :].float().reshape(batch, kv_heads, -1, head_dim)
            scores = matmul_nt(some, k[:, :, :seen]) * scale
            scores = scores.reshape(batch, kv_heads, group, size, seen)
            weights = (scores - lse[..., start:stop].unsqueeze(-1)).exp_()
            weights[..., -size:] = weights[..., -size:].masked_fill(above[:size, :size], 0.0)
            unit = ns.ones_like(lse[..., start:stop])
            column[..., :seen] += _reduce(statistic, weights, unit, keys - tokens + start)
        columns[statistic] = column.reshape(batch, -1, keys)
    return columns


def unmasked_columns(q: Tensor, k: Tensor, statistic: ColumnStatistic) -> Tensor:
    """A sum over rows that see every key: their softmax has no mask, and is its own.

    Args:
        q: ``[batch, query_heads, tokens, head_dim]``, k: ``[batch, kv_heads, keys, head_dim]``.
    """
    ns = namespace(q)
    batch, query_heads, tokens, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    group = query_heads // kv_heads
    grouped = q.reshape(batch, kv_heads, group, tokens, head_dim)
    k = k.float()
    rows = max(FEWEST_ROWS, BLOCK // (batch * query_heads * keys))
    column: Tensor = 0
    for start in range(statistic.first_row(tokens), tokens, rows):
        some = grouped[..., start : start + rows, :].float().reshape(batch, kv_heads, -1, head_dim)
        scores = matmul_nt(some, k) * head_dim**-0.5
        weights = scores.softmax(dim=-1).reshape(batch, kv_heads, group, -1, keys)
        unit = ns.ones(weights.shape[:-1], dtype=weights.dtype, device=q.device)
        column = column + _reduce(statistic, weights, unit, 0)
    return column.reshape(batch, -1, keys)


def window_rows(q: Tensor, k: Tensor, lse: Tensor, statistic: WindowRows) -> Tensor:
    """The weights of the last rows, all at once: float32 ``[batch, query_heads, rows, keys]``.

    Args:
        q, k, lse: as for :func:`columns_from_lse`, of all rows.
    """
    ns = namespace(q)
    batch, query_heads, tokens, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    first = statistic.first_row(tokens)
    queries = q[:, :, first:].float().reshape(batch, kv_heads, -1, head_dim)
    scores = matmul_nt(queries, k.float()).reshape(batch, query_heads, -1, keys) * head_dim**-0.5
    weights = (scores - lse[:, :, first:].unsqueeze(-1)).exp()
    future = ns.triu(
        ns.ones(weights.shape[-2:], dtype=ns.bool, device=q.device), 1 + keys - tokens + first
    )
    return weights.masked_fill(future, 0.0)


def _reduce(statistic: ColumnStatistic, exps: Tensor, inverse: Tensor, first_key: int) -> Tensor:
    """One block's share of a statistic.

    Args:
        exps: weights times their row's sum, float32 ``[…, group, rows, seen]``.
        inverse: one over the row sums, ``[…, group, rows]``.
        first_key: position of the first of these rows among the keys.

    Returns:
        ``[…, 1 or group, seen]``.
    """
    *lead, group, rows, seen = exps.shape
    if statistic.reduce == "count_below_mean":
        ns = namespace(exps)
        weights = exps * inverse.unsqueeze(-1)
        weights = weights.sum(-3, keepdim=True) if statistic.per_kv_head else weights
        row = ns.arange(first_key, first_key + rows, device=exps.device).unsqueeze(-1)
        visible = ns.arange(seen, device=exps.device) <= row
        mean = (group if statistic.per_kv_head else 1) / (row + 1).float()
        return ((weights < mean) & visible).float().sum(-2)
    if statistic.reduce == "sum_of_squares":
        exps, inverse = exps * exps, inverse * inverse
    # A sum over rows is a product with the row vector of inverses: one read of the block.
    if statistic.per_kv_head:
        return inverse.reshape(*lead, 1, group * rows) @ exps.reshape(*lead, group * rows, seen)
    return (inverse.unsqueeze(-2) @ exps).squeeze(-2)
