"""LaProx (arXiv 2605.07234): eviction by what an entry adds to the layer's output, model-wide."""

from __future__ import annotations

from dataclasses import dataclass

from ..attention import ColumnStatistic, flash
from ..tensors import Tensor, has_kernels
from .base import LayerView, Policy, TopK, by_chunks
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
        """See :class:`~kvevict.policies.base.Scorer`."""
        return (ColumnStatistic("sum_of_squares", rows=self.window, per_kv_head=False),)

    def __call__(self, view: LayerView) -> Tensor:
        """See :class:`~kvevict.policies.base.Scorer`."""
        norms = view.columns[0].sqrt()
        if self.project:
            norms = norms * projected_norms(view.values, view.w_o)
        scores = pooled(norms.sum(dim=1), self.window, self.kernel)
        return scores / scores.sum().clamp(min=1e-30)


def projected_norms(values: Tensor, w_o: Tensor) -> Tensor:
    """‖v_j W_O^g‖₂, float32 ``[kv_heads, group, N]``.

    ‖v W‖² = v (W Wᵀ) vᵀ: the Gram matrix is head_dim², so the hidden size drops out of the cost.

    Args:
        values: ``[kv_heads, N, head_dim]``.
        w_o: ``[kv_heads, group, head_dim, hidden]``.
    """
    w = w_o.float()
    gram = w @ w.swapaxes(-1, -2)
    if has_kernels(values) and flash.applies(values):
        from .. import kernels

        return kernels.quadratic_norms(values, gram)

    def squares(part: Tensor) -> Tensor:
        v = part.float().unsqueeze(1)
        return (v @ gram * v).sum(dim=-1)

    return by_chunks(squares, values).clamp(min=0).sqrt()


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
