"""Scissorhands: Exploiting the Persistence of Importance Hypothesis (NeurIPS 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from ..attention import ColumnStatistic
from ..tensors import Tensor
from .base import Equal, LayerView, Policy, TopK
from .snapkv import check_window


@dataclass(frozen=True)
class PersistenceScore:
    """Minus the number of rows of the history window that weigh entry j below their mean.

    Attributes:
        history_window: rows that are looked back at.
    """

    history_window: int = 400

    def __post_init__(self) -> None:
        check_window(self.history_window, 1)

    def statistics(self, n: int) -> tuple[ColumnStatistic, ...]:
        """See :class:`~kvevict.methods.base.Scorer`."""
        return (ColumnStatistic("count_below_mean", rows=self.history_window),)

    def __call__(self, view: LayerView) -> Tensor:
        """See :class:`~kvevict.methods.base.Scorer`."""
        return -view.columns[0]


def Scissorhands(
    keep_ratio: float = 0.2,
    history_window: int = 400,
    recent: int = 10,
    decode_slack: int | None = 0,
    decode_drop: float = 0.5,
    **common,
) -> Policy:
    """Scissorhands: half of the budget is dropped whenever it is full while decoding."""
    common = {"decode_slack": decode_slack, "decode_drop": decode_drop, **common}
    scorer = PersistenceScore(history_window)
    return Policy("scissorhands", scorer, Equal(), TopK(recent=recent), keep_ratio, **common)
