"""Attention on a CPU, by NumPy, one thread a core, whatever the framework.

A thread takes a block of query rows of one kv head against all the keys that it sees, so that the
softmax is exact without rescaling and the column statistics come from the very weights that make
the output. Frameworks spread each small operation over all cores and send every result through
memory; here all passes over a block stay in the cache of one core.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Lock

import numpy as np
from threadpoolctl import ThreadpoolController

from ..environment import cpu_threads
from ..tensors import Tensor, namespace
from .base import ColumnStatistic, Output, check

ROWS = 256  # query rows of a block, over the heads of a group: enough for a fast product
CHUNK = 1 << 16  # scores that go through the softmax's passes together: 256 KiB, a core's own cache
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
    queries = _array(q).reshape(*grouped, head_dim)
    out, lse = np.empty((*grouped, head_dim), np.float32), np.empty(grouped, np.float32)
    size = max(1, ROWS // group)
    starts = range(0, tokens, size)
    units = [(b, h, starts[i::PIECES]) for b in range(batch) for h in range(kv_heads)
             for i in range(min(PIECES, len(starts)))]  # fmt: skip
    k, v = _array(k), _array(v)

    def run(unit: tuple[int, int, range]) -> list[np.ndarray]:
        b, h, starts = unit
        own = out[b, h], lse[b, h]
        with np.errstate(all="ignore"):  # what is not finite is found by who uses the results
            return _piece(queries[b, h], k[b, h], v[b, h], starts, size, statistics, *own)

    pool, alone = _threads(os.getpid())
    with alone, _libraries().limit(limits=1):  # each thread's products keep to that thread
        parts = list(pool.map(run, units))
    columns = []
    for index, statistic in enumerate(statistics):
        width = 1 if statistic.per_kv_head else group
        column = np.zeros((batch, kv_heads, width, keys), np.float32)
        for (b, h, _), part in zip(units, parts):
            column[b, h] += part[index]
        columns.append(_tensor(column.reshape(batch, -1, keys), q))
    return Output(
        _tensor(out.reshape(batch, query_heads, tokens, head_dim), q).to(q.dtype),
        _tensor(lse.reshape(batch, query_heads, tokens), q),
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
        peak, total = _exponentials(exps)
        inverse = 1 / total
        mixed = exps @ v[:seen]
        mixed *= inverse[:, None]
        out[:, start:stop] = mixed.reshape(group, rows, head_dim)
        lse[:, start:stop] = (peak + np.log(total)).reshape(group, rows)
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
    """``[rows, seen]`` becomes exp(scores − peak) in place; returns peaks and sums ``[rows]``."""
    peak, total = np.empty((2, len(scores)), np.float32)
    ones = np.ones(scores.shape[1], np.float32)
    step = max(1, CHUNK // scores.shape[1])
    for start in range(0, len(scores), step):
        some = slice(start, start + step)
        x = scores[some]
        x.max(axis=-1, out=peak[some])
        np.subtract(x, peak[some, None], out=x)
        np.exp(x, out=x)
        np.matmul(x, ones, out=total[some])  # four times as fast as a sum
    return peak, total


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


def _array(x: Tensor) -> np.ndarray:
    """A host tensor's memory as float32, without a copy where it is that already."""
    return np.from_dlpack(x.detach().float())


def _tensor(x: np.ndarray, like: Tensor) -> Tensor:
    """An array as a tensor of ``like``'s framework, without a copy."""
    return namespace(like).utils.dlpack.from_dlpack(x)


@lru_cache(maxsize=1)
def _libraries() -> ThreadpoolController:
    return ThreadpoolController().select(internal_api="openblas")


@lru_cache(maxsize=1)
def _threads(process: int) -> tuple[ThreadPoolExecutor, Lock]:
    """This process's own, which do not come along into a fork, and a lock for who uses them.

    The limit on NumPy's products is the process's: of two calls that overlap, the second would
    take the first one's limit for the one to go back to.
    """
    return ThreadPoolExecutor(cpu_threads()), Lock()
