"""Attention of new tokens over a ragged cache, without padding to the longest head."""

from __future__ import annotations

from ..cache import LayerCache
from ..tensors import Tensor, namespace


def attend_cached(
    q: Tensor, cache: LayerCache, observe: bool = False
) -> tuple[Tensor, list[Tensor] | None]:
    """The last ``tokens`` entries of the cache's tail are the queries' own: causal among them.

    Args:
        q: ``[query_heads, tokens, head_dim]``.
        cache: prefix and tail, the new tokens' keys and values written already.
        observe: also return the weights.

    Returns:
        ``[query_heads, tokens, head_dim]``, and for each of the cache's runs of heads the weights
        ``[heads, group, tokens, length + tail]`` in float32 (None unless asked for).
    """
    ns = namespace(q)
    query_heads, tokens, head_dim = q.shape
    group = query_heads // len(cache.lengths)
    scaled = (q * head_dim**-0.5).reshape(-1, group * tokens, head_dim)
    future = ns.triu(ns.ones((tokens, tokens), dtype=ns.bool, device=q.device), 1)
    outs, seen = [], []
    for heads, keys, values in cache.runs():
        tail_keys = cache.tail_keys[heads, : cache.tail]
        tail_values = cache.tail_values[heads, : cache.tail]
        length = keys.shape[1]
        own = scaled[heads]
        scores = ns.cat([own @ keys.swapaxes(-1, -2), own @ tail_keys.swapaxes(-1, -2)], dim=-1)
        if tokens > 1:
            scores = scores.reshape(-1, tokens, length + cache.tail)
            scores[..., -tokens:] = scores[..., -tokens:].masked_fill(future, -float("inf"))
            scores = scores.reshape(-1, group * tokens, length + cache.tail)
        weights = scores.softmax(dim=-1)
        outs.append(weights[..., :length] @ values + weights[..., length:] @ tail_values)
        if observe:
            seen.append(weights.float().reshape(-1, group, tokens, length + cache.tail))
    out = outs[0] if len(outs) == 1 else ns.cat(outs, dim=0)
    return out.reshape(query_heads, tokens, head_dim), seen if observe else None
