"""Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation (Feng et al., 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..budget import Ratio
from .base import Allocator
from .parts import LayerShared
from .snapkv import SnapKV


@dataclass(frozen=True)
class AdaKV(SnapKV):
    """Ada-KV over SnapKV: heads that spread their attention get more of the layer's budget.

    Attributes:
        alpha_safeguard: α, the part of its equal share that each head is sure of.
    """

    name: ClassVar[str] = "adakv"

    alpha_safeguard: Ratio = Ratio(0.2)

    @property
    def allocator(self) -> Allocator:
        return LayerShared(self.alpha_safeguard)
