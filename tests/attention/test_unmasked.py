"""Column sums of rows that see every key, against float64."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from kvevict.attention import ColumnStatistic, attend, blockwise
from tests.rounding import assert_same


def dense(q: np.ndarray, k: np.ndarray, rows: int, squared: bool) -> np.ndarray:
    """Weights of the last ``rows`` queries on all keys, summed: ``[batch, query_heads, keys]``."""
    batch, query_heads, _, head_dim = q.shape
    group = query_heads // k.shape[1]
    found = np.zeros((batch, query_heads, k.shape[2]))
    for b in range(batch):
        for h in range(query_heads):
            keys = k[b, h // group].astype(np.float64)
            for query in q[b, h, -rows:].astype(np.float64):
                exps = np.exp(keys @ query / head_dim**0.5)
                weights = exps / exps.sum()
                found[b, h] += weights**2 if squared else weights
    return found


@pytest.mark.parametrize("reduce", ["sum", "sum_of_squares"])
@pytest.mark.parametrize("rows", [1, 6, 1000])
@pytest.mark.parametrize(("group", "tokens", "keys"), [(1, 23, 23), (3, 23, 23), (2, 9, 31)])
def test_rows_see_what_comes_after_them(monkeypatch, group, tokens, keys, rows, reduce) -> None:
    monkeypatch.setattr(blockwise, "BLOCK", 1)
    monkeypatch.setattr(blockwise, "FEWEST_ROWS", 4)
    rng = np.random.default_rng([group, rows, keys])
    q = (2 * rng.normal(size=(2, 2 * group, tokens, 8))).astype(np.float32)
    k, v = rng.normal(size=(2, 2, 2, keys, 8)).astype(np.float32)
    asked = [ColumnStatistic(reduce, rows, per_kv_head, causal=False) for per_kv_head in (1, 0)]
    masked = ColumnStatistic(reduce, rows)
    tensors = [paddle.to_tensor(x) for x in (q, k, v)]
    output, plain = attend(*tensors, (*asked, masked)), attend(*tensors, (masked,))
    expected = dense(q, k, rows, reduce == "sum_of_squares")
    summed = expected.reshape(2, 2, group, keys).sum(2)
    np.testing.assert_allclose(output.columns[asked[0]].numpy(), summed, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(output.columns[asked[1]].numpy(), expected, rtol=1e-4, atol=1e-6)
    # Attention itself, and what else was asked for, are what they were.
    assert_same(output.out, plain.out)
    assert_same(output.columns[masked], plain.columns[masked])
    assert np.abs(output.columns[masked].numpy() - summed).max() > (rows > 1) * 1e-3


def test_a_count_needs_the_mask() -> None:
    with pytest.raises(ValueError, match="count_below_mean is of causal rows"):
        ColumnStatistic("count_below_mean", causal=False)
