"""Fade: LaProx's score, whose rows and whose neighbours count the less the farther they are.

This project's own: docs/fade.md has the search that led to it, and where it fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..attention import ColumnStatistic, Statistic
from ..errors import InputError
from ..scoring import neighbours, projected_l2
from ..tensors import Tensor
from .base import Allocator, LayerView, PromptShape, Scorer, Selector
from .parts import LayerShared, TopK, check_window
from .policy import Policy


@dataclass(frozen=True)
class FadingScore(Scorer):
    """The highest that an entry is lent: max_d s_{j-d} / (1 + |d| / plateau) of its neighbours'

        s_j = Σ_g √(Σ_i (a^g_ij / i)²) · ‖v_j W_O^g‖₂,

    where i counts the rows from the last, which is 1. Up to a factor s is LaProx's score, its rows
    divided by their distance from the end: the last one sees what the next token needs, those
    before it what later ones may. A fact is some tokens long, and an answer that is copied is read
    on from where it was found: the more an entry is attended to, the more of what follows it stays.

    Attributes:
        window_size: rows that look; the last of them weigh least in any case.
        back, ahead: d goes from ``-back`` to ``ahead``: entries that one lends to, before and
            behind it.
        plateau: a distance at which half is lent.
        n_sink, recent: first and last entries, which are protected and lend nothing.
    """

    window_size: int = 32
    back: int = 7
    ahead: int = 31
    plateau: float = 4.0
    n_sink: int = 4
    recent: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self.window_size)
        if min(self.back, self.ahead, self.n_sink, self.recent) < 0 or self.plateau <= 0:
            raise InputError(
                "back, ahead, n_sink and recent must not be negative, and plateau above 0"
            )

    def statistics(self, prompt: PromptShape) -> tuple[Statistic, ...]:
        rows = self.window_size
        return (ColumnStatistic("sum_of_squares", rows, per_kv_head=False, fading=1.0),)

    def __call__(self, view: LayerView) -> Tensor:
        scores = projected_l2(view.values, view.w_o, view.statistics[0].sqrt())
        until = max(0, scores.shape[-1] - self.recent)
        reach = self.back, self.ahead, self.n_sink, until
        return neighbours(scores, *reach, tail=1.0, plateau=self.plateau, highest=True)


@dataclass(frozen=True)
class Fade(Policy):
    """Fade: fading rows and neighbours, each layer's budget shared among its heads as in Ada-KV.

    Attributes:
        window_size, back, ahead, plateau: as of :class:`FadingScore`.
        n_sink, recent: first and last entries that are always kept.
    """

    name: ClassVar[str] = "fade"

    window_size: int = 32
    back: int = 7
    ahead: int = 31
    plateau: float = 4.0
    n_sink: int = 4
    recent: int = 8

    @property
    def scorer(self) -> Scorer:
        reach = self.back, self.ahead, self.plateau
        return FadingScore(self.window_size, *reach, self.n_sink, self.recent)

    @property
    def allocator(self) -> Allocator:
        return LayerShared()

    @property
    def selector(self) -> Selector:
        return TopK(self.n_sink, self.recent)
