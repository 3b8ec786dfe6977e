"""Parts that methods share, under names of their own. YAML knows them in lower case: ``equal``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .. import budget
from ..budget import Ratio
from ..errors import InputError
from ..ops import top_k
from ..scoring import neighbours
from ..tensors import Tensor
from .base import Allocator, LayerView, PromptShape, Selector


@dataclass(frozen=True)
class Equal(Allocator):
    """Every head of every layer keeps the same number of entries."""

    def counts(self, scores: Tensor, base: int, layer: int, layers: int) -> list[int]:
        return [base] * scores.shape[0]


@dataclass(frozen=True)
class LayerShared(Allocator):
    """The heads of a layer share one top-k, each sure of a part of its equal share (Ada-KV).

    The part is a floor inside the ranking, as in kvpress; the authors' release ranks without one
    and then averages: (1 - α) · what a head won + α · its equal share, rounded.

    Attributes:
        alpha_safeguard: α, that part.
    """

    alpha_safeguard: Ratio = Ratio(0.2)

    def counts(self, scores: Tensor, base: int, layer: int, layers: int) -> Tensor:
        heads = scores.shape[0]
        sure = top_k(scores, [self.alpha_safeguard.of(base)] * heads)
        ranked = scores.masked_fill(sure, float("inf")).reshape(1, -1)
        return top_k(ranked, [base * heads]).reshape(heads, -1).sum(dim=-1)


@dataclass(frozen=True)
class ModelWide(Allocator):
    """One ranking over all layers, heads and positions (LaProx).

    The selection runs along with the prefill (:mod:`kvevict.engine.model_wide`): there are no
    counts to give before the last layer.
    """

    scope: ClassVar[str] = "model"


@dataclass(frozen=True)
class Pyramid(Allocator):
    """Budgets that fall linearly from the lowest layer to the highest, equal within a layer.

    Attributes:
        beta: β; the highest layer gets 1/β of the average (PyramidKV, section 4.2).
    """

    beta: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 1:
            raise InputError(f"beta must be at least 1, not {self.beta}")

    def counts(self, scores: Tensor, base: int, layer: int, layers: int) -> list[int]:
        heads, candidates = scores.shape
        return [budget.pyramid(base, layers, self.beta, candidates)[layer]] * heads


@dataclass(frozen=True)
class TopK(Selector):
    """The best-scored entries, beside attention sinks and the most recent tokens.

    Attributes:
        n_sink, recent: first and last tokens that are always kept.
    """

    takes_highest: ClassVar[bool] = True

    n_sink: int = 0
    recent: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_sink < 0 or self.recent < 0:
            raise InputError("the numbers of sinks and recent tokens must not be negative")

    def protected(self, prompt: PromptShape, entries: int) -> tuple[int, int]:
        return budget.protected(entries, self.n_sink, self.recent)

    def __call__(
        self, scores: Tensor, counts: list[int] | Tensor, view: LayerView, prompt: PromptShape
    ) -> Tensor:
        return top_k(scores, counts)


def check_window(window_size: int, kernel_size: int = 1) -> None:
    """Raise InputError unless the window is positive and the kernel odd."""
    if window_size < 1:
        raise InputError(f"window_size must be at least 1, not {window_size}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise InputError(f"kernel_size must be odd and positive, not {kernel_size}")


def pooled(scores: Tensor, window_size: int, kernel_size: int) -> Tensor:
    """Average over ``kernel_size`` neighbours, zeros beyond both ends, the window's part at zero.

    Args:
        scores: ``[..., N]``; the last ``window_size`` positions take no part.
    """
    until, half = max(0, scores.shape[-1] - window_size), kernel_size // 2
    return neighbours(scores, half, half, until=until) / kernel_size
