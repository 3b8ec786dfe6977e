from __future__ import annotations

import pytest

from tests.kernels.dense import DEVICE, DTYPES, TOLERANCE, attention, error, heads, kernels, torch

# batch, query heads, kv heads, rows, keys, head_dim
SHAPES = [
    (1, 4, 2, 37, 300, 64),
    (2, 3, 1, 200, 200, 128),
    (1, 2, 2, 1, 129, 128),
    (1, 2, 1, 33, 77, 256),
    (1, 2, 1, 300, 301, 256),
    (1, 1, 1, 1, 1, 64),
]
if DEVICE == "cuda":
    SHAPES += [(1, 32, 8, 2051, 2051, 128), (2, 8, 2, 1000, 4099, 64), (1, 4, 1, 1025, 3001, 256)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_log_sum_exp_match_dense_attention(shape, dtype):
    batch, query_heads, kv_heads, rows, keys, head_dim = shape
    q = heads(batch, query_heads, rows, head_dim, dtype)
    k = heads(batch, kv_heads, keys, head_dim, dtype)
    v = heads(batch, kv_heads, keys, head_dim, dtype)
    weights, expected_lse, _ = attention(q, k)
    expected = (weights @ v.double().unsqueeze(2)).reshape(q.shape)

    out, lse = kernels.flash_forward(q, k, v)

    assert out.dtype == dtype and lse.dtype == torch.float32
    assert error(out, expected) < TOLERANCE[dtype]
    assert (lse - expected_lse).abs().max() < 1e-4
