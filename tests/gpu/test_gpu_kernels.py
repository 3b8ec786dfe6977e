"""Every kernel beside float64."""

from __future__ import annotations

import numpy as np
import pytest
from common import (
    DRY,
    DTYPE,
    NEEDS,
    ROUNDING,
    array,
    attention,
    error,
    framework,
    heads,
    kernels,
    tensor,
)

from kvevict import noise, ops
from kvevict.cache import LayerCache

pytestmark = [*NEEDS]
TOKENS = 300 if DRY else 9001
HEAD_DIMS = (64, 128) if DRY else (64, 128, 256)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_column_statistics_of_the_last_rows(head_dim):
    q, k = heads(8, 50, head_dim), heads(2, TOKENS, head_dim)
    _, weights, lse = attention(array(q), array(k), array(k))
    lse = tensor(lse[None], "float32")

    def statistic(reduce: str, per_kv_head: bool):
        return kernels().column_statistic(q, k, lse, reduce, per_kv_head)

    grouped = weights.reshape(2, 4, 50, TOKENS)
    assert error(statistic("sum", True), grouped.sum((1, 2))) < 1e-4
    assert error(statistic("sum_of_squares", False), (weights**2).sum(1)) < 1e-4
    position = np.arange(TOKENS - 50, TOKENS)[:, None]
    seen = np.arange(TOKENS) <= position
    below = (grouped.sum(1) < 4 / (position + 1)) & seen
    # A weight within rounding of its mean may fall on either side.
    assert error(statistic("count_below_mean", True), below.sum(1)) < 1e-3


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_norms_of_projected_values(head_dim):
    v = heads(2, TOKENS, head_dim)[0]
    w = tensor(np.random.default_rng().standard_normal((2, 4, head_dim, 300), np.float32), DTYPE)
    norms = kernels().projected_norms(v, w)
    assert error(norms, np.linalg.norm(array(v)[:, None] @ array(w), axis=-1)) < 1e-3


def test_selection_and_compaction():
    draw = np.random.default_rng()
    scores = np.exp(draw.uniform(-60, 0, (2, TOKENS))).astype(np.float32)
    scores[1, ::3] = scores[1, 2]  # ties, which the lower positions win
    counts = [TOKENS // 5, TOKENS // 2]
    mask = kernels().top_k(tensor(scores, "float32"), counts)
    rows = [np.sort(np.argsort(-s, kind="stable")[:c]) for s, c in zip(scores, counts)]
    rows = np.concatenate([rows[0], TOKENS + rows[1]])
    found = kernels().positions(mask.reshape(-1), len(rows))
    assert np.array_equal(array(found), rows)
    keys, values = (heads(1, 2 * TOKENS, 128)[0, 0] for _ in range(2))
    for got, whole in zip(kernels().take(keys, values, found), (keys, values)):
        assert np.array_equal(array(got), array(whole)[rows])


def test_noise_is_that_of_the_definition():
    keys = [7, 2**32 - 1]

    def word(x: np.ndarray) -> np.ndarray:
        x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
        x = (x ^ x >> 15) * 0x45D9F3B & 0xFFFFFFFF
        return x ^ x >> 16

    words = np.stack([word(key ^ np.arange(TOKENS)) for key in keys])
    expected = ((words >> 9) + 0.5) / 2**23
    drawn = noise.uniform(keys, TOKENS, like=heads(1, 1, 64))
    assert np.array_equal(array(drawn), expected)
    assert np.array_equal(
        array(kernels().uniform(tensor(np.array(keys), "int64"), TOKENS)), expected
    )


@pytest.mark.parametrize("kv_dtype", [None, "int8", "fp8"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_a_token_over_heads_of_different_lengths(head_dim, kv_dtype):
    if not (DRY or ops.reads(kv_dtype, framework().__name__)):
        pytest.skip(f"this GPU's kernels do not read {kv_dtype}")
    lengths, tail = [TOKENS, 3], 5
    keys, values = (heads(1, sum(lengths), head_dim)[0, 0].contiguous() for _ in range(2))
    new_keys, new_values = (heads(2, tail, head_dim)[0] for _ in range(2))
    q = heads(8, 1, head_dim)[0]
    held = LayerCache(keys, values, lengths)
    if kv_dtype:
        held.quantise(kv_dtype)
        exact = LayerCache(keys[:0].float(), values[:0].float(), lengths, quantised=held.quantised)
        keys, values = (framework().cat([run[i][0] for run in exact.runs()]) for i in (1, 2))
    held.append(new_keys[:, :-1], new_values[:, :-1])
    held.reserve(70)
    tail_lens = tensor(np.array([tail]), "int32")
    kernels().append(new_keys[:, -1], new_values[:, -1], held.device_table, tail_lens)
    chunks = kernels().count_chunks(lengths)
    call = (q, held.device_table, tail_lens, chunks, 70)
    got = array(kernels().decode_attention(*call, kv_dtype=kv_dtype))
    for head, rows in enumerate((slice(0, TOKENS), slice(TOKENS, None))):
        pairs = ((keys, new_keys), (values, new_values))
        k, v = (np.concatenate([array(old[rows]), array(new[head])]) for old, new in pairs)
        own = slice(4 * head, 4 * head + 4)
        expected, *_ = attention(array(q[own])[None], k[None, None], v[None, None])
        assert error(got[own], expected) < ROUNDING[DTYPE]
