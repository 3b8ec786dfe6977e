"""Queries, keys and values of any shape, for tests of what attention reports."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

SHAPES = {
    "seed": st.integers(0, 2**32 - 1),
    "batch": st.integers(1, 2),
    "kv_heads": st.integers(1, 3),
    "group": st.integers(1, 3),
    "tokens": st.integers(1, 40),
    "before": st.integers(0, 9),
}


def drawn(
    seed: int, batch: int, kv_heads: int, group: int, tokens: int, before: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Float32 q ``[batch, query_heads, tokens, 8]``, k and v with ``before`` keys more."""
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(batch, kv_heads * group, tokens, 8)).astype(np.float32) * 2
    k, v = rng.normal(size=(2, batch, kv_heads, tokens + before, 8)).astype(np.float32)
    return q, k, v
