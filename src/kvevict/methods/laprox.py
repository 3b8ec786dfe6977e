"""LaProx (arXiv 2605.07234): eviction by what an entry adds to the layer's output, model-wide."""

from __future__ import annotations

from dataclasses import dataclass

from ..attention import ColumnStatistic
from ..ops import projected_l2
from ..tensors import Tensor
from .base import LayerView, Policy, TopK
from .snapkv import check_window, pooled


@dataclass(frozen=True)
class OutputScore:
    """Σ_g ‖a^g_{W,j}‖₂ · ‖v_j W_O^g‖₂, pooled, then divided by the layer's sum.

    The product bounds what dropping entry j changes in the layer's output over the window W. The
    division makes layers comparable.

    Attributes:
        window: w, the last rows that observe; their own entries are protected.
        kernel: positions pooled.
        project: multiply by the norm of the projected value; off for the ablation without W_O.
    """

    window: int = 32
    kernel: int = 7
    project: bool = True

    def __post_init__(self) -> None:
        check_window(self.window, self.kernel)

    def statistics(self, n: int) -> tuple[ColumnStatistic, ...]:
        """See :class:`~kvevict.methods.base.Scorer`."""
        return (ColumnStatistic("sum_of_squares", rows=self.window, per_kv_head=False),)

    def __call__(self, view: LayerView) -> Tensor:
        """See :class:`~kvevict.methods.base.Scorer`."""
        norms = view.columns[0].sqrt()
        if self.project:
            norms = norms * projected_l2(view.values, view.w_o)
        scores = pooled(norms.sum(dim=1), self.window, self.kernel)
        return scores / scores.sum().clamp(min=1e-30)


@dataclass(frozen=True)
class ModelWide:
    """One ranking over all layers, heads and positions.

    The selection runs along with the prefill (:meth:`Eviction._trim`): there are no counts to give
    before the last layer.
    """

    model_wide = True


def LaProx(
    keep_ratio: float = 0.05, window: int = 32, kernel: int = 7, project: bool = True, **common
) -> Policy:
    """LaProx: projected-output scores under one budget for the whole model."""
    scorer = OutputScore(window, kernel, project)
    return Policy("laprox", scorer, ModelWide(), TopK(recent=window), keep_ratio, **common)
