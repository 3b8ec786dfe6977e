"""A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression (arXiv 2406.11430)."""

from __future__ import annotations

from dataclasses import dataclass

from ..attention import ColumnStatistic
from ..tensors import Tensor
from .base import Equal, LayerView, Policy, TopK


@dataclass(frozen=True)
class NegativeKeyNorm:
    """−‖k_j‖₂: keys of small norm draw the most attention."""

    def statistics(self, n: int) -> tuple[ColumnStatistic, ...]:
        """See :class:`~kvevict.methods.base.Scorer`."""
        return ()

    def __call__(self, view: LayerView) -> Tensor:
        """See :class:`~kvevict.methods.base.Scorer`."""
        keys = view.keys.float()
        return -(keys * keys).sum(dim=-1).sqrt()


def KeyNorm(keep_ratio: float = 0.2, **common) -> Policy:
    """Key norm: nothing is protected, attention is not looked at."""
    return Policy("keynorm", NegativeKeyNorm(), Equal(), TopK(), keep_ratio, **common)
