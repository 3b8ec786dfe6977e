"""A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression (arXiv 2406.11430)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..tensors import Tensor
from .base import LayerView, Scorer
from .policy import Policy


@dataclass(frozen=True)
class NegativeKeyNorm(Scorer):
    """−‖k_j‖₂: keys of small norm draw the most attention."""

    def __call__(self, view: LayerView) -> Tensor:
        keys = view.keys.float()
        return -(keys * keys).sum(dim=-1).sqrt()


@dataclass(frozen=True)
class KeyNorm(Policy):
    """Key norm: nothing is protected, attention is not looked at."""

    name: ClassVar[str] = "keynorm"

    @property
    def scorer(self) -> Scorer:
        return NegativeKeyNorm()
