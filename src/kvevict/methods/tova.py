"""TOVA: Transformers are Multi-State RNNs (Oren et al., 2024); "MSRNN" in NACL's paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from ..attention import ColumnStatistic
from ..tensors import Tensor
from .base import LayerView, PromptShape, Scorer
from .policy import Policy


@dataclass(frozen=True)
class LastRowScore(Scorer):
    """The last row's weight on j, averaged over the layer's heads: all keep the same entries."""

    def statistics(self, prompt: PromptShape) -> tuple[ColumnStatistic, ...]:
        return (ColumnStatistic("sum", rows=1),)

    def __call__(self, view: LayerView) -> Tensor:
        kv_heads, group = view.w_o.shape[:2]
        mean = view.statistics[0].sum(dim=0, keepdim=True) / (kv_heads * group)
        return mean.expand(kv_heads, mean.shape[-1])


@dataclass(frozen=True)
class TOVA(Policy):
    """TOVA: nothing is protected; one entry out for each token decoded."""

    name: ClassVar[str] = "tova"

    decode_slack: Optional[int] = 0

    @property
    def scorer(self) -> Scorer:
        return LastRowScore()
