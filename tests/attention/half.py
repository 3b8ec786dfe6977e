"""Attention in half precision at large scores beside float64, for either framework.

In bfloat16, scores of 100 are half a unit apart: were they rounded to it, weights would be off by a
quarter.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from kvevict.attention import ColumnStatistic, Output, blockwise
from kvevict.attention.cached import attend_cached
from kvevict.cache import LayerCache

DTYPES = ("bfloat16", "float16")
ROUNDING = {"bfloat16": 2**-8, "float16": 2**-11}  # of an output
SUMS, SQUARES = ColumnStatistic("sum", 20, False), ColumnStatistic("sum_of_squares", None, False)
HEADS, KV_HEADS, TOKENS, HEAD_DIM = 4, 2, 90, 80  # 80 is no head_dim of a kernel


def drawn(ns: ModuleType, dtype: str) -> tuple[list[Any], list[np.ndarray]]:
    """q, k, v of one prompt as tensors, and the same numbers in float64."""
    rng = np.random.default_rng(4)
    arrays = [rng.normal(size=(1, h, TOKENS, HEAD_DIM)) for h in (HEADS, KV_HEADS, KV_HEADS)]
    arrays[0] *= 30
    kind = getattr(ns, dtype)
    tensors = [getattr(ns, "to_tensor", ns.tensor)(x.astype(np.float32)).to(kind) for x in arrays]
    return tensors, [wide(x) for x in tensors]


def wide(x: Any) -> np.ndarray:
    return x.float().numpy().astype(np.float64)


def dense(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Output, weights and log-sum-exp of causal attention, ``[heads, tokens, …]``."""
    k, v = (x[0].repeat(HEADS // KV_HEADS, axis=0) for x in (k, v))
    scores = q[0] @ k.swapaxes(-1, -2) / HEAD_DIM**0.5
    assert np.abs(scores).max() > 80
    rows, keys = scores.shape[-2:]
    scores = np.where(np.tri(rows, keys, keys - rows, dtype=bool), scores, -np.inf)
    peak = scores.max(-1, keepdims=True)
    lse = peak + np.log(np.exp(scores - peak).sum(-1, keepdims=True))
    weights = np.exp(scores - lse)
    return weights @ v, weights, lse[..., 0]


def check_prompt(ns: ModuleType, dtype: str, attend=blockwise.attend) -> None:
    """A prompt in several blocks: its output, its log-sum-exp and what is reported of it."""
    tensors, arrays = drawn(ns, dtype)
    got: Output = attend(*tensors, (SUMS, SQUARES))
    out, weights, lse = dense(*arrays)
    assert got.out.dtype == tensors[0].dtype
    assert np.abs(wide(got.out)[0] - out).max() < 2 * ROUNDING[dtype] * np.abs(out).max()
    np.testing.assert_allclose(wide(got.lse)[0], lse, rtol=1e-5)
    for statistic, expected in ((SUMS, weights[:, -20:]), (SQUARES, weights**2)):
        np.testing.assert_allclose(wide(got.columns[statistic])[0], expected.sum(1), 1e-3, 1e-6)


def check_new_tokens(ns: ModuleType, dtype: str) -> None:
    """The last three tokens over a cache: their output and their weights."""
    (q, k, v), arrays = drawn(ns, dtype)
    held = LayerCache.compact(k[0, :, :-3], v[0, :, :-3])
    held.append(k[0, :, -3:], v[0, :, -3:])
    out, weights, _ = dense(arrays[0][:, :, -3:], *arrays[1:])
    for observe in (True, False):
        got, seen = attend_cached(q[0, :, -3:], held, observe)
        assert got.dtype == q.dtype
        assert np.abs(wide(got) - out).max() < 3 * ROUNDING[dtype] * np.abs(out).max()
        if observe:
            (run,) = seen
            np.testing.assert_allclose(wide(run).reshape(weights.shape), weights, 1e-3, 1e-6)


def check_many_alike(ns: ModuleType) -> None:
    """More weight before normalisation than a float16 holds."""
    tokens, value = 1000, 100.0
    q = ns.zeros([1, 1, tokens, HEAD_DIM], dtype=ns.float16)
    got = blockwise.attend(q, q, q + value)
    np.testing.assert_allclose(wide(got.out), value, rtol=2**-10)
