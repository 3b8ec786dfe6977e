"""Fade: LaProx's score with rows that count the less the farther they are from the prompt's end.

This project's own: docs/fade.md has the search that led to it, and where it fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..attention import ColumnStatistic, Statistic
from ..scoring import projected_l2
from ..tensors import Tensor
from .base import Allocator, LayerView, PromptShape, Scorer, Selector
from .parts import LayerShared, TopK, check_window, pooled
from .policy import Policy


@dataclass(frozen=True)
class FadingRows(Scorer):
    """Σ_g √(Σ_i (a^g_ij / i)²) · ‖v_j W_O^g‖₂, pooled; i counts the rows from the last, which is 1.

    LaProx's score, its rows divided by their distance from the end: the last one sees what the
    next token needs, those before it what later ones may, and no number of rows has to be right.

    Attributes:
        window_size: rows that look; the last of them weigh least in any case.
        kernel_size: positions pooled. A fact is some tokens long.
        recent: last entries, which are protected and not pooled.
    """

    window_size: int = 32
    kernel_size: int = 15
    recent: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self.window_size, self.kernel_size)

    def statistics(self, prompt: PromptShape) -> tuple[Statistic, ...]:
        rows = self.window_size
        return (ColumnStatistic("sum_of_squares", rows, per_kv_head=False, fading=1.0),)

    def __call__(self, view: LayerView) -> Tensor:
        norms = view.statistics[0].sqrt()  # [kv_heads, group, N]
        scores = projected_l2(view.values, view.w_o, norms)
        return pooled(scores, self.recent, self.kernel_size)


@dataclass(frozen=True)
class Fade(Policy):
    """Fade: fading rows, each layer's budget shared among its heads as in Ada-KV.

    Attributes:
        window_size, kernel_size: as of :class:`FadingRows`.
        recent: last entries that are always kept.
    """

    name: ClassVar[str] = "fade"

    window_size: int = 32
    kernel_size: int = 15
    recent: int = 8

    @property
    def scorer(self) -> Scorer:
        return FadingRows(self.window_size, self.kernel_size, self.recent)

    @property
    def allocator(self) -> Allocator:
        return LayerShared()

    @property
    def selector(self) -> Selector:
        return TopK(recent=self.recent)
