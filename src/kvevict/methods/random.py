"""The baseline that every score has to beat: entries kept at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .. import noise
from ..tensors import Tensor
from .base import LayerView, Scorer, Selector
from .parts import TopK
from .policy import Policy


@dataclass(frozen=True)
class UniformScore(Scorer):
    """Uniform noise, each head its own."""

    def __call__(self, view: LayerView) -> Tensor:
        return noise.uniform(view.noise_keys, view.keys.shape[1], like=view.keys)


@dataclass(frozen=True)
class Random(Policy):
    """Random entries between attention sinks and recent tokens.

    Attributes:
        n_sink, recent: first and last tokens that are always kept.
    """

    name: ClassVar[str] = "random"

    n_sink: int = 4
    recent: int = 32

    @property
    def scorer(self) -> Scorer:
        return UniformScore()

    @property
    def selector(self) -> Selector:
        return TopK(self.n_sink, self.recent)
