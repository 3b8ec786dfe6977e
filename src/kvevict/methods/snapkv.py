"""SnapKV: LLM Knows What You are Looking for Before Generation (Li et al., 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..attention import ColumnStatistic
from ..tensors import Tensor
from .base import LayerView, PromptShape, Scorer, Selector
from .parts import TopK, check_window, pooled
from .policy import Policy


@dataclass(frozen=True)
class WindowScore(Scorer):
    """Σ_g Σ_{i∈W} a^g_ij of the last w rows, average-pooled over neighbouring positions.

    Attributes:
        window_size: w, of the observation window W. Its own entries get no score: they are
            protected.
        kernel_size: positions pooled, odd; 1 for none.
    """

    window_size: int = 32
    kernel_size: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self.window_size, self.kernel_size)

    def statistics(self, prompt: PromptShape) -> tuple[ColumnStatistic, ...]:
        return (ColumnStatistic("sum", rows=self.window_size),)

    def __call__(self, view: LayerView) -> Tensor:
        return pooled(view.statistics[0], self.window_size, self.kernel_size)


@dataclass(frozen=True)
class SnapKV(Policy):
    """SnapKV: the window's pooled attention chooses, each head alike in number.

    Attributes:
        window_size: last rows that score; their entries are protected.
        kernel_size: positions pooled, odd; 1 for none.
    """

    name: ClassVar[str] = "snapkv"

    window_size: int = 32
    kernel_size: int = 7

    @property
    def scorer(self) -> Scorer:
        return WindowScore(self.window_size, self.kernel_size)

    @property
    def selector(self) -> Selector:
        return TopK(recent=self.window_size)
