"""Attention of new tokens over a ragged cache, without padding to the longest head."""

from __future__ import annotations

from ..cache import LayerCache
from ..ops import decode_kernels
from ..tensors import Tensor, integers, matmul_nt, namespace
from .blockwise import BLOCK

KERNEL_ROWS = 64  # new tokens times group that the GPU kernel takes in a tile


def attend_cached(
    q: Tensor, cache: LayerCache, observe: bool = False
) -> tuple[Tensor, list[Tensor] | None]:
    """The last ``tokens`` entries of the cache's tail are the queries' own: causal among them.

    Args:
        q: ``[query_heads, tokens, head_dim]``.
        cache: prefix and tail, the new tokens' keys and values written already.
        observe: also return the weights, and so hold those of all tokens at once.

    Returns:
        ``[query_heads, tokens, head_dim]``, and for each of the cache's runs of heads the weights
        ``[heads, group, tokens, length + tail]`` in float32 (None unless asked for).
    """
    query_heads, tokens, _ = q.shape
    group = query_heads // len(cache.lengths)
    few = not observe and group * tokens <= KERNEL_ROWS
    if few and (gpu := decode_kernels(q, cache.kv_dtype)):
        tail = integers([cache.tail], namespace(q).int32, like=q)
        chunks, capacity = gpu.count_chunks(cache.lengths), cache.tail_keys.shape[1]
        call = (q, cache.device_table, tail, chunks, capacity)
        return gpu.decode_attention(*call, kv_dtype=cache.kv_dtype), None
    rows = max(1, BLOCK // (query_heads * (max(cache.lengths) + cache.tail)))
    runs = list(cache.runs())  # once: a quantised prefix is decoded for it
    if observe or tokens <= rows:
        return _attend(q, cache, runs, cache.tail, observe)
    outs = []
    for start in range(0, tokens, rows):
        after = max(0, tokens - start - rows)
        own = q[:, start : start + rows]
        outs.append(_attend(own, cache, runs, cache.tail - after, observe)[0])
    return namespace(q).cat(outs, dim=1), None


def _attend(
    q: Tensor, cache: LayerCache, runs: list[tuple], tail: int, observe: bool
) -> tuple[Tensor, list[Tensor] | None]:
    """As :func:`attend_cached`, of queries that are the last of the tail's first ``tail``."""
    ns = namespace(q)
    query_heads, tokens, head_dim = q.shape
    group = query_heads // len(cache.lengths)
    # Scores and weights in float32: half precision rounds a score of 100 by up to a quarter.
    scaled = (q.float() * head_dim**-0.5).reshape(-1, group * tokens, head_dim)
    if tokens > 1:
        future = ns.triu(ns.ones((tokens, tokens), dtype=ns.bool, device=q.device), 1)
    outs, seen = [], []
    for heads, keys, values in runs:
        tail_keys, tail_values = cache.tail_keys[heads, :tail], cache.tail_values[heads, :tail]
        length = keys.shape[1]
        own = scaled[heads]
        parts = [matmul_nt(own, keys.float()), matmul_nt(own, tail_keys.float())]
        scores = ns.cat(parts, dim=-1)
        if tokens > 1:
            scores = scores.reshape(-1, tokens, length + tail)
            scores[..., -tokens:] = scores[..., -tokens:].masked_fill(future, -float("inf"))
            scores = scores.reshape(-1, group * tokens, length + tail)
        weights = scores.softmax(dim=-1)
        if observe:
            seen.append(weights.reshape(-1, group, tokens, length + tail))
        weights = weights.to(values.dtype)
        outs.append(weights[..., :length] @ values + weights[..., length:] @ tail_values)
    out = outs[0] if len(outs) == 1 else ns.cat(outs, dim=0)
    return out.reshape(query_heads, tokens, head_dim), seen if observe else None
