"""TOVA: Transformers are Multi-State RNNs (Oren et al., 2024); "MSRNN" in NACL's paper."""

from __future__ import annotations

from dataclasses import dataclass

from ..attention import ColumnStatistic
from ..tensors import Tensor
from .base import Equal, LayerView, Policy, TopK


@dataclass(frozen=True)
class LastRowScore:
    """The last row's weight on j, averaged over the layer's heads: all keep the same entries."""

    def statistics(self, n: int) -> tuple[ColumnStatistic, ...]:
        """See :class:`~kvevict.methods.base.Scorer`."""
        return (ColumnStatistic("sum", rows=1),)

    def __call__(self, view: LayerView) -> Tensor:
        """See :class:`~kvevict.methods.base.Scorer`."""
        kv_heads, group = view.w_o.shape[:2]
        mean = view.columns[0].sum(dim=0, keepdim=True) / (kv_heads * group)
        return mean.expand(kv_heads, mean.shape[-1])


def TOVA(keep_ratio: float = 0.2, decode_slack: int | None = 0, **common) -> Policy:
    """TOVA: nothing is protected; one entry out for each token decoded."""
    common = {"decode_slack": decode_slack, **common}
    return Policy("tova", LastRowScore(), Equal(), TopK(), keep_ratio, **common)
