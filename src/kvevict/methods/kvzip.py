"""KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction (arXiv 2505.23416)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .. import budget
from ..attention import RepeatedChunks
from ..errors import InputError
from ..tensors import Tensor
from .base import Allocator, LayerView, PromptShape, Scorer, Selector
from .parts import ModelWide, TopK
from .policy import Policy


@dataclass(frozen=True)
class ReconstructionScore(Scorer):
    """The largest weight on entry j while the model repeats j's chunk of the context.

    Attributes:
        chunk_size: tokens that are repeated at a time.
        n_sink: first entries that are attended to from every chunk, at least.
    """

    prompt_only: ClassVar[bool] = True

    chunk_size: int = 2000
    n_sink: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk_size < 1:
            raise InputError(f"chunk_size must be at least 1, not {self.chunk_size}")
        if self.n_sink < 0:
            raise InputError(f"n_sink must not be negative, not {self.n_sink}")

    def statistics(self, prompt: PromptShape) -> tuple[RepeatedChunks, ...]:
        return (RepeatedChunks(self.chunk_size, self.n_sink),)

    def __call__(self, view: LayerView) -> Tensor:
        return view.statistics[0]


@dataclass(frozen=True)
class PrefixAndTopK(TopK):
    """Top-k beside the sinks and all that comes before the context, such as a system prompt."""

    def protected(self, prompt: PromptShape, entries: int) -> tuple[int, int]:
        return budget.protected(entries, max(self.n_sink, prompt.prefix_tokens), self.recent)


@dataclass(frozen=True)
class KVzip(Policy):
    """KVzip: what the model looks at to repeat the context, ranked over the whole model.

    No question has to be known. It takes a second pass: the repeated context goes through each
    layer behind the prompt.

    Attributes:
        chunk_size: tokens that are repeated at a time.
        n_sink: first tokens, always kept; so is a system prompt, if that is longer.
    """

    name: ClassVar[str] = "kvzip"

    chunk_size: int = 2000
    n_sink: int = 4

    @property
    def scorer(self) -> Scorer:
        return ReconstructionScore(self.chunk_size, self.n_sink)

    @property
    def allocator(self) -> Allocator:
        return ModelWide()

    @property
    def selector(self) -> Selector:
        return PrefixAndTopK(n_sink=self.n_sink)
