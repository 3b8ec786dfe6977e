"""The largest weights that rows give to some keys, of a softmax over these keys and their own."""

from __future__ import annotations

from ..tensors import Tensor, matmul_nt, namespace
from .blockwise import BLOCK, FEWEST_ROWS


def peak_weights(q: Tensor, keys: Tensor, own: Tensor) -> Tensor:
    """The largest weight of each key over all rows and the heads of a group.

    Args:
        q: ``[1, query_heads, rows, head_dim]``.
        keys: that every row sees, ``[1, kv_heads, keys, head_dim]``.
        own: the rows' own, ``[1, kv_heads, rows, head_dim]``, seen causally.

    Returns:
        Of ``keys``, float32 ``[kv_heads, keys]``.
    """
    ns = namespace(q)
    _, query_heads, tokens, head_dim = q.shape
    kv_heads, seen = keys.shape[1:3]
    grouped = q.reshape(kv_heads, -1, tokens, head_dim)
    every = ns.cat([keys, own], dim=2).squeeze(0).float()
    rows = max(FEWEST_ROWS, BLOCK // (query_heads * every.shape[1]))
    place = ns.arange(tokens, device=q.device)
    peaks = None
    for start in range(0, tokens, rows):
        part = grouped[:, :, start : start + rows].float() * head_dim**-0.5
        scores = matmul_nt(part.reshape(kv_heads, -1, head_dim), every)
        scores = scores.reshape(kv_heads, -1, part.shape[2], every.shape[1])
        future = place > place[start : start + rows].unsqueeze(-1)
        scores[..., seen:] = scores[..., seen:].masked_fill(future, -float("inf"))
        weights = scores.softmax(dim=-1)[..., :seen].reshape(kv_heads, -1, seen).amax(1)
        peaks = weights if peaks is None else ns.maximum(peaks, weights)
    return peaks
