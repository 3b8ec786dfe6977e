"""Scissorhands: Exploiting the Persistence of Importance Hypothesis (NeurIPS 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from ..attention import ColumnStatistic
from ..budget import Ratio
from ..errors import InputError
from ..tensors import Tensor
from .base import LayerView, PromptShape, Scorer, Selector
from .parts import TopK
from .policy import Policy


@dataclass(frozen=True)
class PersistenceScore(Scorer):
    """Minus the number of rows of the history window that weigh entry j below their mean.

    Attributes:
        history_window: rows that are looked back at.
    """

    history_window: int = 400

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.history_window < 1:
            raise InputError(f"history_window must be at least 1, not {self.history_window}")

    def statistics(self, prompt: PromptShape) -> tuple[ColumnStatistic, ...]:
        return (ColumnStatistic("count_below_mean", rows=self.history_window),)

    def __call__(self, view: LayerView) -> Tensor:
        return -view.statistics[0]


@dataclass(frozen=True)
class Scissorhands(Policy):
    """Scissorhands: half of the budget is dropped whenever it is full while decoding.

    Attributes:
        history_window: rows of the prompt that are looked back at.
        recent: last tokens that are always kept.
    """

    name: ClassVar[str] = "scissorhands"

    decode_slack: Optional[int] = 0
    decode_drop: Ratio = Ratio(0.5)
    history_window: int = 400
    recent: int = 10

    @property
    def scorer(self) -> Scorer:
        return PersistenceScore(self.history_window)

    @property
    def selector(self) -> Selector:
        return TopK(recent=self.recent)
