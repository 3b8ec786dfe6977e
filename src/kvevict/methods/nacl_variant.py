"""Variants of NACL that a study compares with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from ..attention import ColumnStatistic
from ..tensors import Tensor
from .base import LayerView, PromptShape, Scorer, Selector
from .nacl import NACL, ProxyAndRandom, ProxyScore
from .parts import check_window, pooled

Heads = Literal["group", "release", "next", "layer"]


@dataclass(frozen=True)
class ProxyVariant(ProxyScore):
    """NACL's score as its release computes it for grouped queries, of other heads, or pooled.

    The release was written for one query head to each kv head. Run on more, it gives kv head h the
    score of query head h, which mostly belongs to another group, and it applies no mask among the
    proxy rows, so that they see the tokens after themselves.

    Attributes:
        heads: whose attention scores for kv head h: its ``group``'s; query head h's alone, as in
            the ``release``; the ``next`` group's; or that of all heads of the ``layer``.
        causal: False for proxies without a mask.
        kernel_size: positions averaged, as SnapKV does; 1 for none.
    """

    heads: Heads = "group"
    causal: bool = True
    kernel_size: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(1, self.kernel_size)

    def statistics(self, prompt: PromptShape) -> tuple[ColumnStatistic, ...]:
        (sums,) = super().statistics(prompt)
        return (replace(sums, per_kv_head=self.heads != "release", causal=self.causal),)

    def __call__(self, view: LayerView) -> Tensor:
        scores = view.statistics[0]
        kv_heads, n = view.keys.shape[:2]
        if self.heads == "release":
            scores = scores.reshape(-1, n)[:kv_heads]
        elif self.heads == "next":
            scores = scores.roll(-1, 0)
        elif self.heads == "layer":
            scores = scores.sum(dim=0, keepdim=True).expand(kv_heads, n)
        return pooled(scores, 0, self.kernel_size)


@dataclass(frozen=True)
class NACLVariant(NACL):
    """NACL under another score.

    Attributes:
        random: False to keep by score what NACL draws.
        heads, causal, kernel_size: see :class:`ProxyVariant`.
    """

    name: ClassVar[str] = "nacl-variant"
    listed: ClassVar[bool] = False

    random: bool = True
    heads: Heads = "group"
    causal: bool = True
    kernel_size: int = 1

    @property
    def scorer(self) -> Scorer:
        return ProxyVariant(
            self.proxy_tokens_ratio, self.proxy_tokens, self.heads, self.causal, self.kernel_size
        )

    @property
    def selector(self) -> Selector:
        both: ProxyAndRandom = super().selector
        return both if self.random else replace(both, proxy=both.proxy + both.random, random=0)
