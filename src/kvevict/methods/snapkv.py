"""SnapKV: LLM Knows What You are Looking for Before Generation (Li et al., 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from ..attention import ColumnStatistic
from ..errors import InputError
from ..tensors import Tensor, namespace
from .base import Equal, LayerView, Policy, TopK


@dataclass(frozen=True)
class WindowScore:
    """Σ_g Σ_{i∈W} a^g_ij of the last w rows, average-pooled over neighbouring positions.

    Attributes:
        window: w, the observation window. Its own entries get no score: they are protected.
        kernel: positions pooled, odd; 1 for none.
    """

    window: int = 32
    kernel: int = 7

    def __post_init__(self) -> None:
        check_window(self.window, self.kernel)

    def statistics(self, n: int) -> tuple[ColumnStatistic, ...]:
        """See :class:`~kvevict.methods.base.Scorer`."""
        return (ColumnStatistic("sum", rows=self.window),)

    def __call__(self, view: LayerView) -> Tensor:
        """See :class:`~kvevict.methods.base.Scorer`."""
        return pooled(view.columns[0], self.window, self.kernel)


def check_window(window: int, kernel: int) -> None:
    """Raise InputError unless the window is positive and the kernel odd."""
    if window < 1:
        raise InputError(f"window must be at least 1, not {window}")
    if kernel < 1 or kernel % 2 == 0:
        raise InputError(f"kernel must be odd and positive, not {kernel}")


def pooled(scores: Tensor, window: int, kernel: int) -> Tensor:
    """Average over ``kernel`` neighbours, zeros beyond both ends, the window's own part at zero.

    Args:
        scores: ``[kv_heads, N]``; the last ``window`` positions take no part.
    """
    ns = namespace(scores)
    heads, n = scores.shape
    before = max(0, n - window)
    half = kernel // 2
    edge = scores.new_zeros((heads, half))
    padded = ns.cat([edge, scores[:, :before], edge], dim=-1) if half else scores[:, :before]
    mean = sum(padded[:, shift : shift + before] for shift in range(kernel)) / kernel
    return ns.cat([mean, scores.new_zeros((heads, n - before))], dim=-1)


def SnapKV(keep_ratio: float = 0.2, window: int = 32, kernel: int = 7, **common) -> Policy:
    """SnapKV: the window's pooled attention chooses, each head alike in number."""
    return Policy(
        "snapkv", WindowScore(window, kernel), Equal(), TopK(recent=window), keep_ratio, **common
    )
