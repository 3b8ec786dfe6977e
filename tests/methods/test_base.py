from __future__ import annotations

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvevict import InputError, SnapKV, StreamingLLM
from kvevict.ops import top_k
from tests.methods.brute import best


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 60), st.booleans(), st.data())
def test_top_k_marks_the_largest_and_of_equals_the_lower(seed, rows, n, ties, data) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 3, (rows, n)) if ties else rng.normal(size=(rows, n))
    scores = scores.astype(np.float32)
    counts = [data.draw(st.integers(0, n)) for _ in range(rows)]
    mask = top_k(paddle.to_tensor(scores), counts).numpy()
    assert mask.dtype == bool
    assert [set(np.flatnonzero(row)) for row in mask] == [
        best(row, count, range(n)) for row, count in zip(scores, counts)
    ]


def test_top_k_with_infinities() -> None:
    inf = float("inf")
    scores = paddle.to_tensor([[inf, 1.0, inf, 2.0], [-inf, -inf, 0.0, -inf]])
    assert top_k(scores, [3, 2]).tolist() == [[True, False, True, True], [True, False, True, False]]


@pytest.mark.parametrize(
    ("n", "least", "keep_ratio", "budget"),
    [
        (2048, 2048, 0.2, 2048),
        (2049, 2048, 0.2, 409),
        (100, 0, 0.29, 29),
        (3, 0, 0.2, 1),
        (1, 0, 0.5, 1),
        (7, 0, 1.0, 7),
    ],
)
def test_budget(n: int, least: int, keep_ratio: float, budget: int) -> None:
    assert SnapKV(keep_ratio, min_eviction_seqlen=least).entries(n) == budget


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_ratio": 0}, "keep_ratio must be above 0"),
        ({"keep_ratio": -0.1}, "keep_ratio must lie between 0 and 1"),
        ({"keep_ratio": float("nan")}, "keep_ratio must be a number between 0 and 1"),
        ({"min_eviction_seqlen": -1}, "min_eviction_seqlen must not be negative"),
        ({"decode_slack": -1}, "decode_slack must not be negative"),
        ({"decode_drop": 1.1}, "decode_drop must lie between 0 and 1"),
    ],
)
def test_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        StreamingLLM(**settings)
