"""Column statistics from a log-sum-exp that is known: one more product, of the rows that take part.

A Triton kernel where it takes these queries, else framework operations.
"""

from __future__ import annotations

from dataclasses import replace

from ..ops import attention_kernels
from ..tensors import Tensor, namespace
from .base import ColumnStatistic
from .blockwise import columns_from_lse


def column(q: Tensor, k: Tensor, lse: Tensor, statistic: ColumnStatistic) -> Tensor:
    """A statistic of a prompt's causal weights, float32 ``[batch, kv or query heads, keys]``.

    Args:
        q: ``[batch, query_heads, tokens, head_dim]``, k: ``[batch, kv_heads, keys, head_dim]``.
        lse: float32 ``[batch, query_heads, tokens]``, natural logarithm, of the scaled scores.
    """
    first = statistic.first_row(q.shape[2])
    q, lse = q[:, :, first:], lse[:, :, first:]
    if statistic.fading:
        # exp(s - lse) / i^f is exp(s - (lse + f log i)): a row that counts less needs no kernel.
        from_end = namespace(q).arange(q.shape[2], 0, -1, device=q.device)
        lse = lse + statistic.fading * from_end.float().log()
        statistic = replace(statistic, fading=0.0)
    if gpu := attention_kernels(q):
        return gpu.column_statistic(q, k, lse, statistic.reduce, statistic.per_kv_head)
    return columns_from_lse(q, k, lse, (statistic,))[statistic]
