"""Causal grouped-query attention and its statistics, again, in a few lines of float64 NumPy."""

from __future__ import annotations

import numpy as np


def weights(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """``[query_heads, tokens, d]`` and ``[kv_heads, keys, d]`` to ``[query_heads, tokens, keys]``.

    The queries belong to the last ``tokens`` keys.
    """
    return np.exp(_scores(q, k) - lse(q, k)[..., None])


def lse(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Log of the sum of exponentials of each row's scaled scores: ``[query_heads, tokens]``."""
    return np.logaddexp.reduce(_scores(q, k), axis=-1)


def _scores(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    group = len(q) // len(k)
    q, k = q.astype(np.float64), k.astype(np.float64)
    scores = np.stack([head @ k[h // group].T for h, head in enumerate(q)]) / q.shape[-1] ** 0.5
    tokens, keys = scores.shape[1:]
    return np.where(np.tri(tokens, keys, keys - tokens, dtype=bool), scores, -np.inf)


def output(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """``[query_heads, tokens, d]``."""
    group = len(q) // len(k)
    return np.stack([a @ v[h // group] for h, a in enumerate(weights(q, k))])


def column(a: np.ndarray, reduce: str, rows: int | None, group: int | None) -> np.ndarray:
    """One statistic of the weights ``a [query_heads, tokens, keys]``, one key at a time.

    Args:
        group: query heads for each kv head; None for a result for each query head.
    """
    tokens, keys = a.shape[1:]
    a = a[:, -min(tokens, rows or tokens) :]
    if group and reduce == "count_below_mean":
        a, share, group = a.reshape(-1, group, *a.shape[1:]).sum(1), group, None
    else:
        share = 1
    result = np.zeros((len(a), keys))
    for j in range(keys):
        for i in range(a.shape[1]):
            position = keys - a.shape[1] + i
            if j > position:
                continue
            weight = a[:, i, j]
            if reduce == "count_below_mean":
                result[:, j] += weight < share / (position + 1)
            else:
                result[:, j] += weight if reduce == "sum" else weight**2
    return result.reshape(-1, group, keys).sum(1) if group else result


def near_mean(a: np.ndarray, rows: int | None, group: int | None) -> np.ndarray:
    """For each key, how many weights that ``count_below_mean`` compares are a tie but for rounding.

    Float32 may count those either way: within a millionth of their row's mean.
    """
    tokens, keys = a.shape[1:]
    a = a[:, -min(tokens, rows or tokens) :]
    a = a.reshape(-1, group, *a.shape[1:]).sum(1) if group else a
    mean = (group or 1) / np.arange(keys - a.shape[1] + 1, keys + 1)[:, None]
    return (np.abs(a - mean) < 1e-6 * mean).sum(1)
