"""CriticalKV: Identify Critical KV Cache in LLM Inference from an Output Perturbation Perspective
(Feng et al., 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..budget import Ratio
from ..ops import top_k
from ..scoring import projected_l1
from ..tensors import Tensor
from .adakv import AdaKV
from .base import LayerView, PromptShape, Selector
from .parts import TopK
from .snapkv import SnapKV


@dataclass(frozen=True)
class TwoStages(TopK):
    """First by score, then the rest by (score + ε) · Σ_g ‖v_j W_O^g‖₁ (algorithm 1).

    Attributes:
        first_stage_ratio: share of the budget, protected entries included, that the first stage
            fills.
        epsilon: ε lets entries without attention compete by their value alone.
    """

    takes_highest: ClassVar[bool] = False

    first_stage_ratio: Ratio = Ratio(0.5)
    epsilon: float = 1e-4

    def __call__(
        self, scores: Tensor, counts: list[int], view: LayerView, prompt: PromptShape
    ) -> Tensor:
        fixed = self.n_sink + self.recent  # all there wherever a head has anything to choose
        first = [max(0, self.first_stage_ratio.of(count + fixed) - fixed) for count in counts]
        chosen = top_k(scores, first)
        second = (scores + self.epsilon) * projected_l1(view.values, view.w_o)
        second = view.replace_nonfinite("projected values", second)
        rest = [count - taken for count, taken in zip(counts, first)]
        return chosen | top_k(second.masked_fill(chosen, -float("inf")), rest)


@dataclass(frozen=True)
class CriticalKV(SnapKV):
    """CriticalKV over SnapKV.

    Attributes:
        first_stage_ratio: share of the budget that goes by SnapKV's score alone.
        epsilon: ε, added to the scores of the second stage.
    """

    name: ClassVar[str] = "criticalkv"

    first_stage_ratio: Ratio = Ratio(0.5)
    epsilon: float = 1e-4

    @property
    def selector(self) -> Selector:
        return TwoStages(0, self.window_size, self.first_stage_ratio, self.epsilon)


@dataclass(frozen=True)
class CriticalAdaKV(AdaKV):
    """CriticalKV over Ada-KV.

    Attributes:
        first_stage_ratio, epsilon: as of :class:`CriticalKV`.
    """

    name: ClassVar[str] = "criticaladakv"

    first_stage_ratio: Ratio = Ratio(0.5)
    epsilon: float = 1e-4

    @property
    def selector(self) -> Selector:
        return TwoStages(0, self.window_size, self.first_stage_ratio, self.epsilon)
