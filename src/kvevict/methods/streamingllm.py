"""StreamingLLM: Efficient Streaming Language Models with Attention Sinks (ICLR 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from ..attention import ColumnStatistic
from ..tensors import Tensor, namespace
from .base import Equal, LayerView, Policy, TopK


@dataclass(frozen=True)
class Recency:
    """Position alone: the later, the better."""

    def statistics(self, n: int) -> tuple[ColumnStatistic, ...]:
        """See :class:`~kvevict.methods.base.Scorer`."""
        return ()

    def __call__(self, view: LayerView) -> Tensor:
        """See :class:`~kvevict.methods.base.Scorer`."""
        ns = namespace(view.keys)
        heads, n, _ = view.keys.shape
        return ns.arange(n, device=view.keys.device).float().expand(heads, n)


def StreamingLLM(keep_ratio: float = 0.2, sinks: int = 4, **common) -> Policy:
    """StreamingLLM: the first tokens and the last ones.

    They keep their positions in the prompt, as under every method here; the paper numbers them by
    their places in the cache (section 3.2).
    """
    return Policy("streamingllm", Recency(), Equal(), TopK(sinks=sinks), keep_ratio, **common)
