"""StreamingLLM: Efficient Streaming Language Models with Attention Sinks (ICLR 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..tensors import Tensor, namespace
from .base import LayerView, Scorer, Selector
from .parts import TopK
from .policy import Policy


@dataclass(frozen=True)
class Recency(Scorer):
    """Position alone: the later, the better."""

    def __call__(self, view: LayerView) -> Tensor:
        ns = namespace(view.keys)
        heads, n, _ = view.keys.shape
        return ns.arange(n, device=view.keys.device).float().expand(heads, n)


@dataclass(frozen=True)
class StreamingLLM(Policy):
    """StreamingLLM: the first tokens and the last ones.

    They keep their positions in the prompt, as under every method here; the paper numbers them by
    their places in the cache (section 3.2).

    Attributes:
        n_sink: first tokens, the attention sinks.
    """

    name: ClassVar[str] = "streamingllm"

    n_sink: int = 4

    @property
    def scorer(self) -> Scorer:
        return Recency()

    @property
    def selector(self) -> Selector:
        return TopK(n_sink=self.n_sink)
