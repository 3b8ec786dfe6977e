"""Operators of Paddle that only a GPU has, by NumPy: signature, layout, returns, what is refused.

Flash attention follows paddle/phi/kernels/gpu/flash_attn_kernel.cu, and RoPE fused_rope_kernel.cu
and fused_rope_utils.h of paddle/phi/kernels/fusion/gpu, which Paddle's wheel has among its headers.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import paddle

HALVES = (paddle.bfloat16, paddle.float16)
LSE_ROWS = 128  # Paddle's flash attention pads its log-sum-exp to a multiple of so many rows

called: Counter = Counter()  # operations without a CPU kernel


def flash_attn(
    q: paddle.Tensor,
    k: paddle.Tensor,
    v: paddle.Tensor,
    fixed_seed_offset: None,
    attn_mask: None,
    dropout: float,
    causal: bool,
    return_softmax: bool,
    is_test: bool,
    rng_name: str,
) -> tuple:
    """Attention of ``[batch, tokens, heads, head_dim]``.

    Returns:
        The output in ``q``'s layout, no softmax, the log-sum-exp ``[batch, heads, padded tokens]``
        in float32 whose padding is NaN here, and no seed.
    """
    called["flash_attn"] += 1
    assert all(x.dtype in HALVES for x in (q, k, v)) and q.dtype == k.dtype == v.dtype
    assert is_test and not return_softmax and not dropout
    assert (
        k.shape[1] == v.shape[1]
        and (q.shape[1] == k.shape[1] or not causal)
        and q.shape[2] % k.shape[2] == 0
    )
    group, (batch, tokens, heads, head_dim) = q.shape[2] // k.shape[2], q.shape
    queries, keys, values = (
        wide(x).transpose(0, 2, 1, 3).repeat(1 if x is q else group, axis=1) for x in (q, k, v)
    )
    scores = queries @ keys.swapaxes(-1, -2) / np.sqrt(head_dim)
    if causal:
        scores = np.where(np.tri(tokens, dtype=bool), scores, -np.inf)
    peak = scores.max(-1, keepdims=True)
    weights = np.exp(scores - peak)
    total = weights.sum(-1, keepdims=True)
    padded = np.full((batch, heads, -(-tokens // LSE_ROWS) * LSE_ROWS), np.nan, np.float32)
    padded[..., :tokens] = (peak + np.log(total))[..., 0]
    out = (weights / total @ values).transpose(0, 2, 1, 3)
    return rounded(out, q), None, paddle.to_tensor(padded), None


def fused_rotary_position_embedding(
    q: paddle.Tensor,
    k: paddle.Tensor,
    v: None,
    sin: paddle.Tensor,
    cos: paddle.Tensor,
    position_ids: None,
    neighbours: bool,
    time_major: bool,
    base: float,
) -> tuple:
    """RoPE on ``[batch, tokens, heads, head_dim]``, the tables ``[1, tokens, 1, head_dim]``."""
    called["fused_rotary_position_embedding"] += 1
    assert v is position_ids is None and not time_major
    assert q.dtype == k.dtype == sin.dtype == cos.dtype and sin.shape == cos.shape
    assert sin.shape == [1, q.shape[1], 1, q.shape[3]] and q.shape[:2] == k.shape[:2]
    cosines, sines = wide(cos), wide(sin)

    def turned(x: paddle.Tensor) -> paddle.Tensor:
        values = wide(x)
        if neighbours:
            pairs = values.reshape(*values.shape[:-1], -1, 2)
            other = np.stack([-pairs[..., 1], pairs[..., 0]], -1).reshape(values.shape)
        else:
            first, second = np.split(values, 2, -1)
            other = np.concatenate([-second, first], -1)
        return rounded(values * cosines + other * sines, x)

    return turned(q), turned(k), None


def wide(x: paddle.Tensor) -> np.ndarray:
    return x.astype("float32").numpy()


def rounded(array: np.ndarray, like: paddle.Tensor) -> paddle.Tensor:
    return paddle.to_tensor(array).astype(like.dtype)


ALL = {f.__name__: f for f in (flash_attn, fused_rotary_position_embedding)}
