"""Taming the Fragility of KV Cache Eviction in LLM Inference (DefensiveKV, arXiv 2510.13334)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..attention import WindowRows
from ..budget import Ratio
from ..scoring import projected_l1
from ..tensors import Tensor, namespace
from .base import Allocator, LayerView, PromptShape, Scorer, Selector
from .parts import LayerShared, ModelWide, TopK, check_window, pooled
from .policy import Policy

TINY = 1e-30  # no row's weights before the window are all 0 but for rounding


@dataclass(frozen=True)
class WorstCaseScore(Scorer):
    """max_{g, i∈W} ã^g_ij, at least its mean over j, times ‖v_j W_O‖₁; what is sure comes first.

    ã is a row of the window pooled over neighbouring positions, at its sum before. The norms are
    means over the group, divided by their sum over the layer's kv heads at that position, as in
    the authors' release. Sure are the entries of highest mean weight that, with the window itself,
    receive ``first_stage_ratio`` of the attention: at most as many of a head as it may keep on
    average. They score 1 and their mean weight; the others do not reach 1. (The release takes the
    window's share from 32 entries before it, and that ratio from what the window leaves.)

    Attributes:
        window_size: w, of the observation window W. Its own entries get no score: they are
            protected.
        kernel_size: positions pooled, odd; 1 for none.
        first_stage_ratio: share of the attention whose receivers are kept first.
    """

    prompt_only: ClassVar[bool] = True
    by_budget: ClassVar[bool] = True

    window_size: int = 32
    kernel_size: int = 5
    first_stage_ratio: Ratio = Ratio(0.9)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self.window_size, self.kernel_size)

    def statistics(self, prompt: PromptShape) -> tuple[WindowRows, ...]:
        return (WindowRows(self.window_size),)

    def __call__(self, view: LayerView) -> Tensor:
        rows = view.statistics[0]
        mean = self._outside(rows.mean(dim=2).mean(dim=1))
        scores = self._worst_case(rows) * _share_of_norms(view)
        sure = self._first_stage(mean, view.prompt.entries - self.window_size)
        return namespace(rows).where(sure, 1 + mean, scores)

    def _worst_case(self, rows: Tensor) -> Tensor:
        """Of ``[kv_heads, group, rows, N]`` the highest pooled weights, ``[kv_heads, N]``."""
        # A head at a time: the rows are the largest that is held, and pooling copies them.
        worst = namespace(rows).stack([self._highest(own) for own in rows.unbind(0)])
        candidates = max(1, worst.shape[-1] - self.window_size)
        floor = worst.sum(dim=-1, keepdim=True) / candidates
        return namespace(worst).maximum(worst, floor.expand(*worst.shape))

    def _highest(self, rows: Tensor) -> Tensor:
        """Of ``[group, rows, N]``, each pooled and brought to its sum before: ``[N]``."""
        before = self._outside(rows).sum(dim=-1, keepdim=True)
        rows = pooled(rows, self.window_size, self.kernel_size)
        rows = rows * (before / rows.sum(dim=-1, keepdim=True).clamp(min=TINY))
        return rows.amax(1).amax(0)

    def _first_stage(self, mean: Tensor, most: int) -> Tensor:
        """Which entries are sure, at most so many of each head: bool ``[kv_heads, N]``."""
        ns = namespace(mean)
        window = 1 - mean.sum(dim=-1, keepdim=True)
        order = mean.argsort(descending=True)
        received = ns.take_along_dim(mean, order, dim=-1).cumsum(dim=-1)
        sure = (received < float(self.first_stage_ratio) - window).to(ns.int64)
        return order.argsort() < sure.sum(dim=-1, keepdim=True).clamp(max=max(0, most))

    def _outside(self, weights: Tensor) -> Tensor:
        """``weights [..., N]`` with 0 for the window's entries."""
        n = weights.shape[-1]
        position = namespace(weights).arange(n, device=weights.device)
        return weights.masked_fill(position >= n - self.window_size, 0.0)


def _share_of_norms(view: LayerView) -> Tensor:
    """‖v_j W_O‖₁ of each kv head, over the sum of all at position j: ``[kv_heads, N]``."""
    norms = projected_l1(view.values, view.w_o)
    return norms / norms.sum(dim=0, keepdim=True).clamp(min=TINY)


@dataclass(frozen=True)
class DefensiveKV(Policy):
    """DefensiveKV: the worst that the window saw counts, not the mean; a layer's heads share.

    Attributes:
        window_size: last rows that score; their entries are protected.
        kernel_size: positions pooled, odd; 1 for none.
        first_stage_ratio: share of the attention whose receivers are kept first.
    """

    name: ClassVar[str] = "defensivekv"

    window_size: int = 32
    kernel_size: int = 5
    first_stage_ratio: Ratio = Ratio(0.9)

    @property
    def scorer(self) -> Scorer:
        return WorstCaseScore(self.window_size, self.kernel_size, self.first_stage_ratio)

    @property
    def allocator(self) -> Allocator:
        return LayerShared(Ratio(0.0))

    @property
    def selector(self) -> Selector:
        return TopK(recent=self.window_size)


@dataclass(frozen=True)
class LayerDefensiveKV(DefensiveKV):
    """Layer-DefensiveKV: the layers share the budget, too."""

    name: ClassVar[str] = "layerdefensivekv"

    @property
    def allocator(self) -> Allocator:
        return ModelWide()
