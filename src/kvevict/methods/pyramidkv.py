"""PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling (2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Allocator
from .parts import Pyramid
from .snapkv import SnapKV


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """PyramidKV: SnapKV's score, more entries for the lower layers.

    Attributes:
        beta: β; the highest layer gets 1/β of the average.
    """

    name: ClassVar[str] = "pyramidkv"

    beta: int = 20

    @property
    def allocator(self) -> Allocator:
        return Pyramid(self.beta)
