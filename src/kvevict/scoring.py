"""What scores are made of: norms of projected values, and what entries lend their neighbours."""

from __future__ import annotations

from typing import Callable

from . import ops
from .tensors import Tensor, namespace

CHUNK = 4096  # entries whose projected values are held at a time


def neighbours(
    scores: Tensor,
    back: int,
    ahead: int,
    since: int = 0,
    until: int | None = None,
    tail: float = 0.0,
    plateau: float = 1.0,
    highest: bool = False,
) -> Tensor:
    """What neighbours lend each position: Σ_d, or max_d, s_{j-d} (1 + |d|/plateau)^-tail.

    Args:
        scores: float32 ``[..., n]``, not negative.
        back, ahead: d goes from ``-back`` to ``ahead``: a position lends so many before and behind.
        since, until: those before and from there on lend nothing; from there on they take nothing.
        highest: the highest share in place of the sum.
    """
    *lead, n = scores.shape
    until = n if until is None else until
    if gpu := ops.kernels(scores):
        rows = scores.reshape(-1, n).contiguous()
        lent = gpu.neighbours(rows, back, ahead, since, until, tail, plateau, highest)
        return lent.reshape(*lead, n)
    ns, since = namespace(scores), min(since, until)
    before = scores.new_zeros((*lead, ahead + since))
    padded = ns.cat([before, scores[..., since:until], scores.new_zeros((*lead, back))], dim=-1)
    mixed = None
    for place, distance in enumerate(range(ahead, -back - 1, -1)):
        part = padded[..., place : place + until]
        part = part * (1 + abs(distance) / plateau) ** -tail if tail else part
        if mixed is not None:
            part = ns.maximum(mixed, part) if highest else mixed + part
        mixed = part
    return ns.cat([mixed, scores.new_zeros((*lead, n - until))], dim=-1)


def projected_l2(values: Tensor, w_o: Tensor, weights: Tensor | None = None) -> Tensor:
    """‖v_j W_O^g‖₂, float32 ``[kv_heads, group, N]``, or Σ_g weights · that, ``[kv_heads, N]``.

    ‖v W‖² = v (W Wᵀ) vᵀ: the Gram matrix is head_dim², so the hidden size drops out of the cost.

    Args:
        values: ``[kv_heads, N, head_dim]``.
        w_o: ``[kv_heads, group, head_dim, hidden]``.
        weights: float32 ``[kv_heads, group, N]``.
    """
    if (gpu := ops.attention_kernels(values)) and w_o.dtype == values.dtype:
        return gpu.projected_norms(values, w_o, weights)
    w = w_o.float()
    gram = w @ w.swapaxes(-1, -2)

    def squares(part: Tensor) -> Tensor:
        v = part.float().unsqueeze(1)
        return (v @ gram * v).sum(dim=-1)

    norms = by_chunks(squares, values).clamp(min=0).sqrt()
    return norms if weights is None else (norms * weights).sum(dim=1)


def projected_l1(values: Tensor, w_o: Tensor) -> Tensor:
    """Σ_g ‖v_j W_O^g‖₁, float32 ``[kv_heads, N]``; shapes as for :func:`projected_l2`."""
    members = range(w_o.shape[1])
    return by_chunks(
        lambda v: sum((v @ w_o[:, member]).abs().float().sum(dim=-1) for member in members), values
    )


def by_chunks(f: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """``f(values)``, a number for each entry, some entries at a time: ``f`` may widen them.

    Args:
        values: ``[kv_heads, N, head_dim]``, or keys; N above 0.

    Returns:
        ``[..., N]``.
    """
    spans = range(0, values.shape[1], CHUNK)
    parts = [f(values[:, start : start + CHUNK]) for start in spans]
    return namespace(values).cat(parts, dim=-1)
