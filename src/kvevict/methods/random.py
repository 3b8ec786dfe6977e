"""The baseline that every score has to beat: entries kept at random."""

from __future__ import annotations

from dataclasses import dataclass

from .. import noise
from ..attention import ColumnStatistic
from ..tensors import Tensor
from .base import Equal, LayerView, Policy, TopK


@dataclass(frozen=True)
class UniformScore:
    """Uniform noise, each head its own."""

    def statistics(self, n: int) -> tuple[ColumnStatistic, ...]:
        """See :class:`~kvevict.methods.base.Scorer`."""
        return ()

    def __call__(self, view: LayerView) -> Tensor:
        """See :class:`~kvevict.methods.base.Scorer`."""
        return noise.uniform(view.noise_keys, view.keys.shape[1], like=view.keys)


def Random(keep_ratio: float = 0.2, sinks: int = 4, recent: int = 32, **common) -> Policy:
    """Random entries between attention sinks and recent tokens."""
    selector = TopK(sinks=sinks, recent=recent)
    return Policy("random", UniformScore(), Equal(), selector, keep_ratio, **common)
