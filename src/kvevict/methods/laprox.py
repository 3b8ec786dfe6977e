"""LaProx (arXiv 2605.07234): eviction by what an entry adds to the layer's output, model-wide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..attention import ColumnStatistic
from ..ops import projected_l2
from ..tensors import Tensor
from .base import Allocator, LayerView, PromptShape, Scorer, Selector
from .parts import ModelWide, TopK, check_window, pooled
from .policy import Policy


@dataclass(frozen=True)
class OutputScore(Scorer):
    """Σ_g ‖a^g_{W,j}‖₂ · ‖v_j W_O^g‖₂, pooled, then divided by the layer's sum.

    The product bounds what dropping entry j changes in the layer's output over the window W. The
    division makes layers comparable.

    Attributes:
        window_size: w, the last rows that observe; their own entries are protected.
        kernel_size: positions pooled.
        project: multiply by the norm of the projected value; off for the ablation without W_O.
    """

    window_size: int = 32
    kernel_size: int = 7
    project: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self.window_size, self.kernel_size)

    def statistics(self, prompt: PromptShape) -> tuple[ColumnStatistic, ...]:
        return (ColumnStatistic("sum_of_squares", rows=self.window_size, per_kv_head=False),)

    def __call__(self, view: LayerView) -> Tensor:
        norms = view.statistics[0].sqrt()
        if self.project:
            norms = norms * projected_l2(view.values, view.w_o)
        scores = pooled(norms.sum(dim=1), self.window_size, self.kernel_size)
        return scores / scores.sum().clamp(min=1e-30)


@dataclass(frozen=True)
class LaProx(Policy):
    """LaProx: projected-output scores under one budget for the whole model.

    Attributes:
        window_size: last rows that observe; their entries are protected.
        kernel_size: positions pooled, odd; 1 for none.
        project: off for the ablation without W_O.
    """

    name: ClassVar = "laprox"
    default_keep_ratio: ClassVar = 0.05

    window_size: int = 32
    kernel_size: int = 7
    project: bool = True

    @property
    def scorer(self) -> Scorer:
        return OutputScore(self.window_size, self.kernel_size, self.project)

    @property
    def allocator(self) -> Allocator:
        return ModelWide()

    @property
    def selector(self) -> Selector:
        return TopK(recent=self.window_size)
