"""H2O: Heavy-Hitter Oracle for Efficient Generative Inference of LLMs (NeurIPS 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from .. import budget
from ..attention import ColumnStatistic
from ..budget import Ratio
from ..tensors import Tensor
from .base import LayerView, PromptShape, Scorer, Selector
from .parts import TopK
from .policy import Policy


@dataclass(frozen=True)
class AccumulatedScore(Scorer):
    """Σ_g Σ_{i≤N} a^g_ij over all rows, and over the decoded ones as they come."""

    def statistics(self, prompt: PromptShape) -> tuple[ColumnStatistic, ...]:
        return (ColumnStatistic("sum"),)

    def __call__(self, view: LayerView) -> Tensor:
        return view.statistics[0]


@dataclass(frozen=True)
class RecentShare(TopK):
    """Top-k beside a share of the budget for the most recent tokens.

    Attributes:
        recent_share: that share.
    """

    takes_highest: ClassVar[bool] = (
        False  # what it protects of a head changes with the head's budget
    )

    recent_share: Ratio = Ratio(0.5)

    def protected(self, prompt: PromptShape, entries: int) -> tuple[int, int]:
        return budget.protected(entries, self.n_sink, self.recent_share.of(entries))


@dataclass(frozen=True)
class H2O(Policy):
    """H2O: half heavy hitters, half recent; one entry out for each token decoded.

    Attributes:
        recent_share: share of the budget for the most recent tokens.
    """

    name: ClassVar[str] = "h2o"

    decode_slack: Optional[int] = 0
    recent_share: Ratio = Ratio(0.5)

    @property
    def scorer(self) -> Scorer:
        return AccumulatedScore()

    @property
    def selector(self) -> Selector:
        return RecentShare(recent_share=self.recent_share)
