"""KeyDiff: Key Similarity-Based KV Cache Eviction (arXiv 2504.15364)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..tensors import Tensor
from .base import LayerView, Scorer
from .policy import Policy


@dataclass(frozen=True)
class KeyDifference(Scorer):
    """−cos(k_j, k̄), k̄ the mean of all keys at length 1: keys unlike the others are kept.

    The paper evicts block by block as the prompt is read; here, as in kvpress, all at once.
    """

    def __call__(self, view: LayerView) -> Tensor:
        keys = _unit(view.keys.float())
        anchor = _unit(keys.mean(dim=1, keepdim=True))
        return -(keys * anchor).sum(dim=-1)


@dataclass(frozen=True)
class KeyDiff(Policy):
    """KeyDiff: nothing is protected, attention is not looked at."""

    name: ClassVar[str] = "keydiff"

    @property
    def scorer(self) -> Scorer:
        return KeyDifference()


def _unit(x: Tensor) -> Tensor:
    return x / (x * x).sum(dim=-1, keepdim=True).sqrt().clamp(min=1e-12)
