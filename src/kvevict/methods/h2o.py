"""H2O: Heavy-Hitter Oracle for Efficient Generative Inference of LLMs (NeurIPS 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from .. import budget
from ..attention import ColumnStatistic
from ..tensors import Tensor
from .base import Equal, LayerView, Policy, TopK


@dataclass(frozen=True)
class AccumulatedScore:
    """Σ_g Σ_{i≤N} a^g_ij over all rows, and over the decoded ones as they come."""

    def statistics(self, n: int) -> tuple[ColumnStatistic, ...]:
        """See :class:`~kvevict.methods.base.Scorer`."""
        return (ColumnStatistic("sum"),)

    def __call__(self, view: LayerView) -> Tensor:
        """See :class:`~kvevict.methods.base.Scorer`."""
        return view.columns[0]


@dataclass(frozen=True)
class RecentShare(TopK):
    """Top-k beside a share of the budget for the most recent tokens.

    Attributes:
        recent_share: that share.
    """

    recent_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        budget.ratio(self.recent_share, "recent_share")

    def protected(self, n: int, budget_: int) -> tuple[int, int]:
        """See :class:`~kvevict.methods.base.Selector`."""
        recent = budget.share(budget_, budget.ratio(self.recent_share, "recent_share"))
        return budget.protected(budget_, self.sinks, recent)


def H2O(
    keep_ratio: float = 0.2,
    recent_share: float = 0.5,
    decode_slack: int | None = 0,
    **common,
) -> Policy:
    """H2O: half heavy hitters, half recent; one entry out for each token decoded."""
    selector = RecentShare(recent_share=recent_share)
    common = {"decode_slack": decode_slack, **common}
    return Policy("h2o", AccumulatedScore(), Equal(), selector, keep_ratio, **common)
