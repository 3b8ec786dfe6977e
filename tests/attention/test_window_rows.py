"""The weights of the last rows themselves."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevict import InputError
from kvevict.attention import ColumnStatistic, WindowRows, attend
from tests.attention import numpy_attention as dense
from tests.attention.shapes import SHAPES, drawn


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 50), **SHAPES)
def test_they_are_the_weights(rows, **shape) -> None:
    q, k, v = drawn(**shape)
    (batch, kv_heads, keys, _), heads, tokens = k.shape, q.shape[1], q.shape[2]
    asked, sums = WindowRows(rows), ColumnStatistic("sum", rows)
    output = attend(*map(paddle.to_tensor, (q, k, v)), (sums, asked))
    got = output.columns[asked].numpy()
    assert got.shape == (batch, heads, min(rows, tokens), keys)
    assert got.dtype == np.float32
    expected = np.stack([dense.weights(*one) for one in zip(q, k)])[:, :, -rows:]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    summed = got.reshape(batch, kv_heads, -1, keys).sum(2)
    np.testing.assert_allclose(output.columns[sums].numpy(), summed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_what_a_row_does_not_see_weighs_nothing(scale: float) -> None:
    """Keys after a row may score far above all that it sees."""
    q, k = np.ones((1, 1, 6, 8), np.float32), np.ones((1, 1, 6, 8), np.float32)
    k *= np.arange(6, dtype=np.float32)[:, None] * scale
    asked = WindowRows(6)
    weights = attend(*map(paddle.to_tensor, (q, k, k)), (asked,)).columns[asked].numpy()[0, 0]
    assert (weights[~np.tri(6, dtype=bool)] == 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WindowRows(0), "the rows of a statistic are a number above 0, not 0"),
        (lambda: WindowRows(None), "the rows of a statistic are a number above 0"),
        (lambda: ColumnStatistic("sum", rows=2.0), "are a number above 0, not 2.0"),
        (lambda: ColumnStatistic("max"), "a column statistic is one of sum, .*, not 'max'"),
        (lambda: ColumnStatistic("count_below_mean", causal=False), "is of causal rows"),
    ],
)
def test_statistics_that_are_none(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
