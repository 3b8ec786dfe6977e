"""Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation (Feng et al., 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from .. import budget
from ..ops import top_k
from ..tensors import Tensor
from .base import Policy, TopK
from .snapkv import WindowScore


@dataclass(frozen=True)
class SharedTopK:
    """The heads of a layer share one top-k, each sure of a part of its equal share.

    The part is a floor inside the ranking, as in kvpress; the authors' release ranks without one
    and then averages: (1 - α) · what a head won + α · its equal share, rounded.

    Attributes:
        alpha: that part, in [0, 1].
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        budget.ratio(self.alpha, "alpha")

    def counts(self, scores: Tensor, base: int, layer: int, layers: int) -> list[int]:
        """See :class:`~kvevict.methods.base.Allocator`."""
        heads = scores.shape[0]
        floor = budget.share(base, budget.ratio(self.alpha, "alpha"))
        sure = top_k(scores, [floor] * heads)
        ranked = scores.masked_fill(sure, float("inf")).reshape(1, -1)
        return top_k(ranked, [base * heads]).reshape(heads, -1).sum(dim=-1).tolist()


def AdaKV(
    keep_ratio: float = 0.2, window: int = 32, kernel: int = 7, alpha: float = 0.2, **common
) -> Policy:
    """Ada-KV over SnapKV: heads that spread their attention get more of the layer's budget."""
    scorer = WindowScore(window, kernel)
    return Policy("adakv", scorer, SharedTopK(alpha), TopK(recent=window), keep_ratio, **common)
