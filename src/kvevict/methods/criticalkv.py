"""CriticalKV: Identify Critical KV Cache in LLM Inference from an Output Perturbation Perspective
(Feng et al., 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from .. import budget
from ..ops import projected_l1, top_k
from ..tensors import Tensor
from .adakv import SharedTopK
from .base import Equal, LayerView, Policy, TopK
from .snapkv import WindowScore


@dataclass(frozen=True)
class TwoStages(TopK):
    """First by score, then the rest by (score + ε) · Σ_g ‖v_j W_O^g‖₁ (algorithm 1).

    Attributes:
        first_share: share of the budget, protected entries included, that the first stage fills.
        epsilon: lets entries without attention compete by their value alone.
    """

    first_share: float = 0.5
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        budget.ratio(self.first_share, "first_share")

    def __call__(self, scores: Tensor, counts: list[int], view: LayerView, n: int) -> Tensor:
        """See :class:`~kvevict.methods.base.Selector`."""
        part = budget.ratio(self.first_share, "first_share")
        fixed = self.sinks + self.recent  # all there wherever a head has anything to choose
        first = [max(0, budget.share(count + fixed, part) - fixed) for count in counts]
        chosen = top_k(scores, first)
        second = (scores + self.epsilon) * projected_l1(view.values, view.w_o)
        second = view.replace_nonfinite("projected values", second)
        rest = [count - taken for count, taken in zip(counts, first)]
        return chosen | top_k(second.masked_fill(chosen, -float("inf")), rest)


def CriticalKV(
    keep_ratio: float = 0.2,
    window: int = 32,
    kernel: int = 7,
    first_share: float = 0.5,
    epsilon: float = 1e-4,
    **common,
) -> Policy:
    """CriticalKV over SnapKV."""
    selector = TwoStages(recent=window, first_share=first_share, epsilon=epsilon)
    scorer = WindowScore(window, kernel)
    return Policy("criticalkv", scorer, Equal(), selector, keep_ratio, **common)


def CriticalAdaKV(
    keep_ratio: float = 0.2,
    window: int = 32,
    kernel: int = 7,
    alpha: float = 0.2,
    first_share: float = 0.5,
    epsilon: float = 1e-4,
    **common,
) -> Policy:
    """CriticalKV over Ada-KV."""
    selector = TwoStages(recent=window, first_share=first_share, epsilon=epsilon)
    scorer = WindowScore(window, kernel)
    return Policy("criticaladakv", scorer, SharedTopK(alpha), selector, keep_ratio, **common)
