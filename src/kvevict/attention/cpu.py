"""Attention on a CPU, by NumPy, one thread a core, whatever the framework.

A thread takes a block of query rows of one kv head against all the keys that it sees, so that the
softmax is exact without rescaling and the column statistics come from the very weights that make
the output.
"""

from __future__ import annotations

import numpy as np

from .. import cores
from ..tensors import Tensor
from .base import ColumnStatistic, Output, check

ROWS = 256  # query rows of a block, over the heads of a group: enough for a fast product
SMALL = 32  # peaks no farther from nought leave squares of exponentials, and their sums, in range
PIECES = 8  # in which a head's blocks are dealt out; sums over rows are added up piece by piece


def attend(q: Tensor, k: Tensor, v: Tensor, statistics: tuple[ColumnStatistic, ...] = ()) -> Output:
    """Causal grouped-query attention; shapes as in :func:`kvevict.attention.attend`.

    Computed in float32. The result does not depend on the number of threads.
    """
    check(q, k, v)
    batch, query_heads, tokens, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    group = query_heads // kv_heads
    grouped = (batch, kv_heads, group, tokens)
    queries = cores.array(q).reshape(*grouped, head_dim)
    out, lse = np.empty((*grouped, head_dim), np.float32), np.empty(grouped, np.float32)
    size = max(1, ROWS // group)
    starts = range(0, tokens, size)
    units = [(b, h, starts[i::PIECES]) for b in range(batch) for h in range(kv_heads)
             for i in range(min(PIECES, len(starts)))]  # fmt: skip
    k, v = cores.array(k), cores.array(v)

    def run(unit: tuple[int, int, range]) -> list[np.ndarray]:
        b, h, starts = unit
        own = out[b, h], lse[b, h]
        return _piece(queries[b, h], k[b, h], v[b, h], starts, size, statistics, *own)

    parts = cores.run(run, units)
    columns = []
    for index, statistic in enumerate(statistics):
        width = 1 if statistic.per_kv_head else group
        column = np.zeros((batch, kv_heads, width, keys), np.float32)
        for (b, h, _), part in zip(units, parts):
            column[b, h] += part[index]
        columns.append(cores.tensor(column.reshape(batch, -1, keys), q))
    return Output(
        cores.tensor(out.reshape(batch, query_heads, tokens, head_dim), q).to(q.dtype),
        cores.tensor(lse.reshape(batch, query_heads, tokens), q),
        dict(zip(statistics, columns)),
    )


def _piece(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    starts: range,
    size: int,
    statistics: tuple[ColumnStatistic, ...],
    out: np.ndarray,
    lse: np.ndarray,
) -> list[np.ndarray]:
    """The blocks of ``size`` rows that begin at ``starts``, of one kv head.

    Args:
        q: ``[group, tokens, head_dim]``, k, v: ``[keys, head_dim]``.
        out, lse: ``[group, tokens, head_dim]`` and ``[group, tokens]``, written.

    Returns:
        These rows' share of each statistic, ``[1 or group, keys]``.
    """
    group, tokens, head_dim = q.shape
    keys = len(k)
    columns = [np.zeros((1 if s.per_kv_head else group, keys), np.float32) for s in statistics]
    memory = np.empty(group * size * keys, np.float32)
    future = np.triu(np.ones((size, size), bool), 1)
    for start in starts:
        stop = min(start + size, tokens)
        rows, seen = stop - start, keys - tokens + stop
        scaled = q[:, start:stop].reshape(-1, head_dim) * np.float32(head_dim**-0.5)
        exps = memory[: group * rows * seen].reshape(-1, seen)
        np.matmul(scaled, k[:seen].T, out=exps)
        corner = exps.reshape(group, rows, seen)[:, :, seen - rows :]
        np.copyto(corner, -np.inf, where=future[:rows, :rows])
        shift, total = _exponentials(exps)
        inverse = 1 / total
        mixed = exps @ v[:seen]
        mixed *= inverse[:, None]
        out[:, start:stop] = mixed.reshape(group, rows, head_dim)
        lse[:, start:stop] = (shift + np.log(total)).reshape(group, rows)
        for statistic, column in zip(statistics, columns):
            skip = max(0, statistic.first_row(tokens) - start)
            if skip < rows:
                column[:, :seen] += _reduce(
                    statistic,
                    exps.reshape(group, rows, seen)[:, skip:],
                    inverse.reshape(group, rows)[:, skip:],
                    keys - tokens + start + skip,
                )
    return columns


def _exponentials(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``[rows, seen]`` becomes exp(scores − shift) in place; returns shifts and sums ``[rows]``.

    The shifts are the rows' peaks where these are large, which is seldom; else nought.
    """
    shift, total = np.empty((2, len(scores)), np.float32)
    ones = np.ones(scores.shape[1], np.float32)
    step = max(1, cores.CHUNK // scores.shape[1])
    for start in range(0, len(scores), step):
        some = slice(start, start + step)
        x = scores[some]
        x.max(axis=-1, out=shift[some])
        if np.abs(shift[some]).max() > SMALL:
            np.subtract(x, shift[some, None], out=x)
        else:
            shift[some] = 0
        np.exp(x, out=x)
        np.matmul(x, ones, out=total[some])  # four times as fast as a sum
    return shift, total


def _reduce(
    statistic: ColumnStatistic, exps: np.ndarray, inverse: np.ndarray, first_key: int
) -> np.ndarray:
    """One block's share of a statistic.

    Args:
        exps: weights times their row's sum, ``[group, rows, seen]``.
        inverse: one over the row sums, ``[group, rows]``.
        first_key: position of the first of these rows among the keys.

    Returns:
        ``[1 or group, seen]``.
    """
    group, rows, seen = exps.shape
    if statistic.reduce == "count_below_mean":
        weights = exps * inverse[..., None]
        weights = weights.sum(0, keepdims=True) if statistic.per_kv_head else weights
        row = np.arange(first_key, first_key + rows)[:, None]
        mean = np.float32(group if statistic.per_kv_head else 1) / (row + 1).astype(np.float32)
        return ((weights < mean) & (np.arange(seen) <= row)).sum(1, dtype=np.float32)
    if statistic.reduce == "sum_of_squares":
        exps, inverse = exps * exps, inverse * inverse
    # A sum over rows is a product with the row vector of inverses: one read of the block.
    if statistic.per_kv_head:
        return inverse.reshape(1, -1) @ exps.reshape(-1, seen)
    return (inverse[:, None] @ exps)[:, 0]
