"""Attention in blocks of query rows, with the framework's own operations, on any device.

A block of rows is taken against all the keys it sees at once, so its softmax is exact without
rescaling, and the column statistics come from the very weights that make the output: one pass,
no second product of queries and keys. A block is small enough to stay in a core's cache, and the
number of blocks grows as N while their size does not: memory beyond input and output is O(N).
"""

from __future__ import annotations

from ..tensors import Tensor, matmul_nt, namespace
from .base import ColumnStatistic, Output, check

# Scores held at a time: 8 MiB of float32 keep a CPU's products large and its calls few; a GPU wants
# the fewest launches that memory allows.
CPU_BLOCK = 1 << 21
GPU_BLOCK = 1 << 26
FEWEST_ROWS = 16


def attend(q: Tensor, k: Tensor, v: Tensor, statistics: tuple[ColumnStatistic, ...] = ()) -> Output:
    """Causal grouped-query attention; shapes as in :func:`kvevict.attention.attend`."""
    check(q, k, v)
    ns = namespace(q)
    batch, query_heads, tokens, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    group = query_heads // kv_heads
    scaled = (q * head_dim**-0.5).reshape(batch, kv_heads, group, tokens, head_dim)
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
    # One head at a time on a CPU (its block is in cache); all of them at once on a GPU.
    heads = [(b, h) for b in range(batch) for h in range(kv_heads)] if _on_cpu(q) else [...]
    block = CPU_BLOCK if _on_cpu(q) else GPU_BLOCK // (batch * kv_heads)
    rows = min(tokens, max(FEWEST_ROWS, block // (group * keys)))
    above = ns.triu(ns.ones((rows, rows), dtype=ns.bool, device=q.device), 1)

    for head in heads:
        qs, ks, vs = scaled[head], k[head].contiguous(), v[head].contiguous()
        for start in range(0, tokens, rows):
            stop = min(start + rows, tokens)
            size, seen = stop - start, keys - tokens + stop
            shape = [*qs.shape[:-3], group, size]
            flat = [*qs.shape[:-3], group * size]
            queries = qs[..., start:stop, :].reshape(*flat, head_dim)
            scores = matmul_nt(queries, ks[..., :seen, :])
            future = above[:size, :size]
            exps, peak, total = _exponentials(scores.reshape(*shape, seen), future)
            inverse = 1 / total
            flat_exps = exps.reshape(*flat, seen)
            if exps.dtype != v.dtype:  # Paddle would copy even where it does not
                flat_exps = flat_exps.to(v.dtype)
            mixed = (flat_exps @ vs[..., :seen, :]).reshape(*shape, head_dim)
            out[head][..., start:stop, :] = (mixed * inverse.unsqueeze(-1)).to(q.dtype)
            lse[head][..., start:stop] = peak + total.log()
            for statistic, column in columns.items():
                skip = max(0, statistic.first_row(tokens) - start)
                if skip < size:
                    first_key = keys - tokens + start + skip
                    column[head][..., :seen] += _reduce(
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
    grouped = (q * head_dim**-0.5).reshape(batch, kv_heads, group, tokens, head_dim)
    lse = lse.reshape(batch, kv_heads, group, tokens)
    columns = {}
    for statistic in statistics:
        column = ns.zeros(
            (batch, kv_heads, 1 if statistic.per_kv_head else group, keys),
            dtype=ns.float32,
            device=q.device,
        )
        rows = min(tokens, max(FEWEST_ROWS, GPU_BLOCK // (batch * query_heads * keys)))
        above = ns.triu(ns.ones((rows, rows), dtype=ns.bool, device=q.device), 1)
        for start in range(statistic.first_row(tokens), tokens, rows):
            stop = min(start + rows, tokens)
            size, seen = stop - start, keys - tokens + stop
            scores = grouped[..., start:stop, :].reshape(batch, kv_heads, -1, head_dim)
            scores = matmul_nt(scores, k[:, :, :seen]).float()
            scores = scores.reshape(batch, kv_heads, group, size, seen)
            weights = (scores - lse[..., start:stop].unsqueeze(-1)).exp()
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
    rows = max(FEWEST_ROWS, CPU_BLOCK // (batch * query_heads * keys))
    column: Tensor = 0
    for start in range(statistic.first_row(tokens), tokens, rows):
        some = grouped[..., start : start + rows, :].float() * head_dim**-0.5
        scores = matmul_nt(some.reshape(batch, kv_heads, -1, head_dim), k)
        weights = scores.softmax(dim=-1).reshape(batch, kv_heads, group, -1, keys)
        unit = ns.ones(weights.shape[:-1], dtype=weights.dtype, device=q.device)
        column = column + _reduce(statistic, weights, unit, 0)
    return column.reshape(batch, -1, keys)


def _on_cpu(x: Tensor) -> bool:
    return "cpu" in str(x.device)


def _exponentials(scores: Tensor, future: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax before its division, over the last axis, the masked corner at zero.

    Args:
        scores: ``[…, group, rows, seen]``; may be overwritten.
        future: bool ``[rows, rows]``, True where the last ``rows`` keys are ahead of their row.

    Returns:
        exp(scores − peak), float32; peak and the row sums, float32 ``[…, group, rows]``.
    """
    if namespace(scores).__name__ == "paddle" and _on_cpu(scores):
        from . import paddle_cpu  # late: it brings NumPy, which grading does not need

        return paddle_cpu.exponentials(scores, future)
    scores = scores.float()
    corner = scores[..., -future.shape[0] :]
    scores[..., -future.shape[0] :] = corner.masked_fill(future, -float("inf"))
    peak = scores.amax(dim=-1)
    exps = (scores - peak.unsqueeze(-1)).exp_()
    return exps, peak, exps.sum(dim=-1)


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
