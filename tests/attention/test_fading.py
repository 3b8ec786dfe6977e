"""Rows that count less the farther they are from the end, against float64."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevict import InputError
from kvevict.attention import ColumnStatistic, attend, blockwise
from kvevict.attention.columns import column
from tests.attention import numpy_attention as dense
from tests.attention.shapes import SHAPES, drawn


def expected(q: np.ndarray, k: np.ndarray, statistic: ColumnStatistic) -> np.ndarray:
    weights = np.stack([dense.weights(*one) for one in zip(q, k)])
    if statistic.rows:
        weights = weights[:, :, -statistic.rows :]
    distance = np.arange(weights.shape[2], 0, -1.0)[:, None]
    faded = (weights / distance**statistic.fading) ** statistic.power
    summed = faded.sum(2)
    batch, _, keys = summed.shape
    return summed.reshape(batch, k.shape[1], -1, keys).sum(2) if statistic.per_kv_head else summed


@settings(max_examples=40, deadline=None)
@given(
    rows=st.none() | st.integers(1, 50),
    fading=st.sampled_from([0.5, 1.0, 2.0]),
    reduce=st.sampled_from(["sum", "sum_of_squares"]),
    per_kv_head=st.booleans(),
    **SHAPES,
)
def test_rows_fade(rows, fading, reduce, per_kv_head, **shape) -> None:
    q, k, v = drawn(**shape)
    faded = ColumnStatistic(reduce, rows, per_kv_head, fading=fading)
    plain = ColumnStatistic(reduce, rows, per_kv_head)
    tensors = [paddle.to_tensor(x) for x in (q, k, v)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "BLOCK", 1)
        patch.setattr(blockwise, "FEWEST_COLUMN_ROWS", 7)
        on_cpu = attend(*tensors, (faded, plain))
        blocks = blockwise.attend(*tensors)
        others = column(*tensors[:2], blocks.lse, faded)
    for got in (on_cpu.columns[faded], others):
        np.testing.assert_allclose(got.numpy(), expected(q, k, faded), rtol=2e-4, atol=1e-6)
    # What is asked for beside it is what it was.
    want = expected(q, k, plain)
    np.testing.assert_allclose(on_cpu.columns[plain].numpy(), want, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("tokens", [20, 700])
def test_half_precision_takes_the_same_shift(tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    q = paddle.to_tensor(rng.normal(size=(1, 4, tokens, 64)) * 3).astype("bfloat16")
    k, v = (paddle.to_tensor(rng.normal(size=(1, 2, tokens, 64))).astype("bfloat16") for _ in "kv")
    asked = ColumnStatistic("sum_of_squares", 32, per_kv_head=False, fading=1.0)
    wide = [x.astype("float32").numpy() for x in (q, k)]
    got = attend(q, k, v, (asked,)).columns[asked]
    np.testing.assert_allclose(got.numpy(), expected(*wide, asked), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fading": -1.0}, "fading is a number from 0, not -1.0"),
        ({"fading": float("nan")}, "fading is a number from 0, not nan"),
        ({"fading": 1.0, "causal": False}, "rows fade in sums of causal weights only"),
        ({"fading": 1.0, "reduce": "count_below_mean"}, "rows fade in sums of causal weights"),
    ],
)
def test_what_does_not_fade(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ColumnStatistic(**{"reduce": "sum", **settings})
