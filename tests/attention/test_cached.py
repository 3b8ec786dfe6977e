"""Attention over a ragged prefix and a tail, against dense attention over what each head holds."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from kvevict.attention import cached
from kvevict.attention.cached import attend_cached
from kvevict.cache import LayerCache
from tests.attention import numpy_attention as dense

LENGTHS = [[3, 3, 3], [5, 1, 1, 9], [0, 4], [0, 0], [7]]


def build(rng: np.random.Generator, lengths: list[int], old: int, new: int, head_dim: int = 8):
    """A cache and, for each head, the keys and values that it holds."""
    keys, values = rng.normal(size=(2, sum(lengths), head_dim)).astype(np.float32)
    tail_k, tail_v = rng.normal(size=(2, len(lengths), old + new, head_dim)).astype(np.float32)
    cache = LayerCache(paddle.to_tensor(keys), paddle.to_tensor(values), lengths)
    for span in (slice(0, old), slice(old, None)):
        if span != slice(0, 0):
            cache.append(paddle.to_tensor(tail_k[:, span]), paddle.to_tensor(tail_v[:, span]))
    ends = np.cumsum(lengths)[:-1]
    held = [
        tuple(np.concatenate(pair) for pair in zip(prefix, tail))
        for prefix, tail in zip(
            zip(np.split(keys, ends), np.split(values, ends)), zip(tail_k, tail_v)
        )
    ]
    return cache, held


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize(("old", "new"), [(0, 1), (6, 1), (0, 5), (2, 5)])
def test_ragged(lengths: list[int], group: int, old: int, new: int) -> None:
    rng = np.random.default_rng([*lengths, group, old, new])
    cache, held = build(rng, lengths, old, new)
    q = (rng.normal(size=(len(lengths) * group, new, 8)) * 2).astype(np.float32)
    out, seen = attend_cached(paddle.to_tensor(q), cache, observe=True)
    assert attend_cached(paddle.to_tensor(q), cache)[1] is None
    by_head = [w for run in seen for w in run.numpy()]
    assert [w.shape for w in by_head] == [(group, new, n + old + new) for n in lengths]
    for h, (keys, values) in enumerate(held):
        own = q[h * group : (h + 1) * group]
        expected = dense.output(own, keys[None], values[None])
        got = out[h * group : (h + 1) * group].numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(by_head[h], dense.weights(own, keys[None]), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_a_long_continuation_goes_in_blocks(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    rng = np.random.default_rng(rows)
    cache, _ = build(rng, [5, 1, 9], 2, 5)
    q = paddle.to_tensor(rng.normal(size=(6, 5, 8)).astype(np.float32))
    whole, _ = attend_cached(q, cache)
    monkeypatch.setattr(cached, "BLOCK", rows * 6 * (9 + 7))
    sizes = []
    monkeypatch.setattr(
        cached,
        "_attend",
        lambda own, *rest, f=cached._attend: sizes.append(own.shape[1]) or f(own, *rest),
    )
    blocks, _ = attend_cached(q, cache)
    assert max(sizes) == rows and sum(sizes) == 5
    np.testing.assert_allclose(blocks.numpy(), whole.numpy(), rtol=1e-5, atol=1e-6)


def test_large_scores() -> None:
    rng = np.random.default_rng(1)
    cache, held = build(rng, [20, 3], 1, 4)
    q = (rng.normal(size=(2, 4, 8)) * 1e4).astype(np.float32)
    out, _ = attend_cached(paddle.to_tensor(q), cache)
    for h, (keys, values) in enumerate(held):
        expected = dense.output(q[h : h + 1], keys[None], values[None])[0]
        np.testing.assert_allclose(out[h].numpy(), expected, atol=0.05)
