"""LaProx (arXiv 2605.07234): eviction by what an entry adds to the layer's output, model-wide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Optional

from ..attention import ColumnStatistic, Statistic, WindowRows
from ..scoring import projected_l2
from ..tensors import Tensor
from .base import Allocator, LayerView, PromptShape, Scorer, Selector
from .parts import ModelWide, TopK, check_window, pooled
from .policy import Policy
from .settings import later

Reading = Literal["per_head", "group_mean"]
Pool = Optional[Literal["product", "attention"]]


@dataclass(frozen=True)
class OutputScore(Scorer):
    """Σ_g ‖a^g_{W,j}‖₂ · ‖v_j W_O^g‖₂, pooled, then divided by the layer's sum.

    The product bounds what dropping entry j changes in the layer's output over the window W. The
    division makes layers comparable. The paper also speaks of the mean attention weight within each
    query group, without saying how it joins the heads' own W_O; there is no public code.

    Attributes:
        window_size: w, the last rows that observe; their own entries are protected.
        kernel_size: positions pooled.
        project: multiply by the norm of the projected value; off for the ablation without W_O.
        reading: ``per_head``, as above; or ``group_mean``, the weights averaged over the group
            first: ‖mean_g a^g_{W,j}‖₂ · Σ_g ‖v_j W_O^g‖₂.
        pool: the ``product``, as above, or the ``attention`` before it is multiplied; None for
            what goes with the reading: the product per head, the attention of a group's mean.
    """

    window_size: int = 32
    kernel_size: int = 7
    project: bool = True
    reading: Reading = later("per_head")
    pool: Pool = later(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self.window_size, self.kernel_size)

    def statistics(self, prompt: PromptShape) -> tuple[Statistic, ...]:
        if self.reading == "group_mean":
            return (WindowRows(self.window_size),)
        return (ColumnStatistic("sum_of_squares", rows=self.window_size, per_kv_head=False),)

    def __call__(self, view: LayerView) -> Tensor:
        grouped = self.reading == "group_mean"
        norms = _norm_of_mean(view.statistics[0]) if grouped else view.statistics[0].sqrt()
        pool = self.pool or ("attention" if grouped else "product")
        if pool == "attention":
            norms = pooled(norms, self.window_size, self.kernel_size)
        if not self.project:
            scores = norms.sum(dim=1)
        elif grouped:
            scores = norms.squeeze(1) * projected_l2(view.values, view.w_o).sum(dim=1)
        else:
            scores = projected_l2(view.values, view.w_o, norms)
        if pool == "product":
            scores = pooled(scores, self.window_size, self.kernel_size)
        return scores / scores.sum().clamp(min=1e-30)


def _norm_of_mean(weights: Tensor) -> Tensor:
    """Of ``[kv_heads, group, rows, N]`` the norm over rows of the group's mean, kept as one."""
    mean = weights.mean(dim=1)
    return (mean * mean).sum(dim=1, keepdim=True).sqrt()


@dataclass(frozen=True)
class LaProx(Policy):
    """LaProx: projected-output scores under one budget for the whole model.

    Attributes:
        window_size: last rows that observe; their entries are protected.
        kernel_size: positions pooled, odd; 1 for none.
        project: off for the ablation without W_O.
        reading, pool: where the paper leaves it open, see :class:`OutputScore`.
    """

    name: ClassVar[str] = "laprox"
    default_keep_ratio: ClassVar[float] = 0.05

    window_size: int = 32
    kernel_size: int = 7
    project: bool = True
    reading: Reading = "per_head"
    pool: Pool = None

    @property
    def scorer(self) -> Scorer:
        return OutputScore(
            self.window_size, self.kernel_size, self.project, self.reading, self.pool
        )

    @property
    def allocator(self) -> Allocator:
        return ModelWide()

    @property
    def selector(self) -> Selector:
        return TopK(recent=self.window_size)
