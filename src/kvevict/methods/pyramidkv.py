"""PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling (2024)."""

from __future__ import annotations

from dataclasses import dataclass

from .. import budget
from ..errors import InputError
from ..tensors import Tensor
from .base import Policy, TopK
from .snapkv import WindowScore


@dataclass(frozen=True)
class Pyramid:
    """Budgets that fall linearly from the lowest layer to the highest, equal within a layer.

    Attributes:
        beta: the highest layer gets 1/β of the average.
    """

    beta: int = 20

    def __post_init__(self) -> None:
        if self.beta < 1:
            raise InputError(f"beta must be at least 1, not {self.beta}")

    def counts(self, scores: Tensor, base: int, layer: int, layers: int) -> list[int]:
        """See :class:`~kvevict.methods.base.Allocator`."""
        heads, candidates = scores.shape
        return [budget.pyramid(base, layers, self.beta, candidates)[layer]] * heads


def PyramidKV(
    keep_ratio: float = 0.2, window: int = 32, kernel: int = 7, beta: int = 20, **common
) -> Policy:
    """PyramidKV: SnapKV's score, more for the lower layers."""
    scorer = WindowScore(window, kernel)
    return Policy("pyramidkv", scorer, Pyramid(beta), TopK(recent=window), keep_ratio, **common)
