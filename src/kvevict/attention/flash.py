"""Flash attention on a GPU: the framework's kernel, whose log-sum-exp the statistics reuse.

With Paddle this is its FlashAttention-2, with PyTorch the same or cuDNN's. They return the
log-sum-exp of each row, so a statistic over few rows needs one more product of those queries with
the keys, and no softmax.
"""

from __future__ import annotations

from ..ops import compute_capability
from ..tensors import Tensor, namespace
from .base import ColumnStatistic, Output, check
from .columns import column


def attend(q: Tensor, k: Tensor, v: Tensor, statistics: tuple[ColumnStatistic, ...] = ()) -> Output:
    """Causal grouped-query attention; shapes as in :func:`kvevict.attention.attend`.

    Takes float16 and bfloat16 tensors on a GPU, all rows of the prompt at once.
    """
    check(q, k, v)
    out, lse = _forward(q, k, v, causal=True)
    return Output(out, lse, {s: column(q, k, lse, s) for s in statistics})


def attend_behind(q: Tensor, k: Tensor, v: Tensor, own_k: Tensor, own_v: Tensor) -> Tensor:
    """As :func:`kvevict.attention.attend_behind`: either part by itself, joined by their sums."""
    check(q, own_k, own_v)
    out, lse = _forward(q, k, v, causal=False)
    own, own_lse = _forward(q, own_k, own_v, causal=True)
    share = (own_lse - lse).sigmoid().unsqueeze(-1)  # of all weights, those on the own keys
    return (out.float() + (own.float() - out.float()) * share).to(q.dtype)


def _forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp; if not ``causal``, of any number of keys."""
    forward = _paddle if namespace(q).__name__ == "paddle" else _torch
    return forward(q, k, v, causal)


def _paddle(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """FlashAttention-2 of Paddle; it wants ``[batch, tokens, heads, head_dim]``."""
    from paddle.nn.functional import flashmask_attention

    out, lse = flashmask_attention(
        q.swapaxes(1, 2),
        k.swapaxes(1, 2),
        v.swapaxes(1, 2),
        causal=causal,
        return_softmax_lse=True,
        training=False,
    )
    return out.swapaxes(1, 2), lse[:, :, : q.shape[2]]  # it pads the rows


def _torch(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """PyTorch's public function gives no log-sum-exp; the operators under it do."""
    import torch

    if compute_capability("torch") in (
        (9, 0),
        (10, 0),
    ):  # where PyTorch too prefers cuDNN's, far ahead
        out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, causal
        )
        return out, lse.reshape(q.shape[:3])
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)
    return out, lse
