from __future__ import annotations

import pytest

from kvevict.attention import ColumnStatistic, columns
from kvevict.errors import InputError
from tests.kernels.dense import DEVICE, DTYPES, attention, error, heads, kernels, torch

# batch, query heads, kv heads, rows, keys, head_dim
SHAPES = [
    (1, 4, 2, 37, 300, 64),
    (2, 3, 1, 200, 200, 128),
    (1, 2, 2, 1, 129, 128),
    (2, 8, 2, 53, 190, 64),
    (1, 14, 2, 19, 131, 64),
    (1, 8, 1, 33, 77, 256),
    (1, 2, 1, 129, 260, 256),
    (1, 1, 1, 1, 1, 64),
]
if DEVICE == "cuda":
    SHAPES += [
        (1, 32, 8, 41, 4099, 128),
        (2, 8, 2, 2051, 2051, 64),
        (1, 4, 1, 400, 5001, 256),
        (1, 28, 4, 327, 3001, 128),
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per_kv_head", [True, False])
@pytest.mark.parametrize("reduce", ["sum", "sum_of_squares"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_match_dense_attention(shape, reduce, per_kv_head, dtype):
    batch, query_heads, kv_heads, rows, keys, head_dim = shape
    q = heads(batch, query_heads, rows, head_dim, dtype)
    k = heads(batch, kv_heads, keys, head_dim, dtype)
    weights, lse, _ = attention(q, k)
    expected = (weights if reduce == "sum" else weights**2).sum(-2)
    expected = expected.sum(2) if per_kv_head else expected.flatten(1, 2)

    got = kernels.column_statistic(q, k, lse.float(), reduce, per_kv_head)

    assert got.dtype == torch.float32 and got.shape == expected.shape
    assert error(got, expected) < 1e-5
    assert torch.equal(got, kernels.column_statistic(q, k, lse.float(), reduce, per_kv_head))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per_kv_head", [True, False])
@pytest.mark.parametrize("reduce", ["sum", "sum_of_squares"])
def test_rows_that_fade(monkeypatch, reduce, per_kv_head, dtype):
    """A shift of their log-sum-exp is all that the kernel sees of it."""
    q, k = heads(1, 6, 150, 64, dtype), heads(1, 2, 150, 64, dtype)
    weights, lse, _ = attention(q, k)
    faded = weights[..., -32:, :] / torch.arange(32, 0, -1, device=DEVICE)[:, None]
    expected = (faded if reduce == "sum" else faded**2).sum(-2)
    expected = expected.sum(2) if per_kv_head else expected.flatten(1, 2)
    monkeypatch.setattr(columns, "attention_kernels", lambda q: kernels)
    asked = ColumnStatistic(reduce, 32, per_kv_head, fading=1.0)
    assert error(columns.column(q, k, lse.float(), asked), expected) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per_kv_head", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_counts_match_dense_attention(shape, per_kv_head, dtype):
    batch, query_heads, kv_heads, rows, keys, head_dim = shape
    q = heads(batch, query_heads, rows, head_dim, dtype)
    k = heads(batch, kv_heads, keys, head_dim, dtype)
    weights, lse, visible = attention(q, k)
    if per_kv_head:
        weights = weights.sum(2, keepdim=True)
    mean = (query_heads // kv_heads if per_kv_head else 1) / visible.sum(-1, keepdim=True)

    got = kernels.column_statistic(q, k, lse.float(), "count_below_mean", per_kv_head)

    # A weight within rounding of its mean may fall on either side; the first row's is its mean.
    decided = visible & (visible.sum(-1, keepdim=True) > 1)
    surely = (decided & (weights < mean * (1 - 1e-4))).sum(-2).reshape(got.shape)
    perhaps = (decided & (weights < mean * (1 + 1e-4))).sum(-2).reshape(got.shape)
    assert torch.all(surely <= got) and torch.all(got <= perhaps)
    assert (perhaps - surely).sum() <= 2 + 1e-3 * got.sum()  # few rows have few weights


def test_strides_and_slices_are_taken_as_they_are():
    q = heads(1, 4, 150, 128, torch.float16)
    k = heads(1, 2, 150, 128, torch.float16)
    weights, lse, _ = attention(q, k)
    got = kernels.column_statistic(q[:, :, -40:], k, lse.float()[:, :, -40:], "sum", True)
    assert error(got, weights[..., -40:, :].sum(-2).sum(2)) < 1e-5


def test_what_the_kernels_cannot_take_is_said():
    q = heads(1, 2, 8, 96, torch.float16)
    lse = torch.zeros(1, 2, 8, device=DEVICE)
    with pytest.raises(InputError, match="head_dim"):
        kernels.column_statistic(q, q, lse, "sum", True)
    q = heads(1, 2, 8, 64, torch.float32)
    with pytest.raises(InputError, match="bfloat16 or float16"):
        kernels.column_statistic(q, q, lse, "sum", True)
    with pytest.raises(InputError, match="'mean'"):
        kernels.column_statistic(q, q, lse, "mean", True)
