"""The contract of an eviction policy: a scorer, an allocator and a selector.

The scorer says how important each cache entry is, the allocator how many entries each kv head may
keep, the selector which ones these are. Any three go together; a published method is a choice of
three, one short file each in this package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .. import budget
from ..attention import ColumnStatistic
from ..errors import InputError
from ..ops import top_k
from ..tensors import Tensor


@dataclass(frozen=True)
class LayerView:
    """What a scorer or selector may look at.

    Attributes:
        columns: the statistics that the scorer asked for, in its order, float32
            ``[kv_heads, N]``, or ``[kv_heads, group, N]`` where not ``per_kv_head``.
        keys, values: ``[kv_heads, N, head_dim]``, keys with RoPE applied.
        w_o: the output projection's rows for each query head, grouped by kv head:
            ``[kv_heads, group, head_dim, hidden]``.
        noise_keys: one 32-bit key for each kv head, for :mod:`kvevict.noise`.
        replace_nonfinite: for selectors that score again: ``replace_nonfinite("values", x)`` is x
            with 0 for what is not finite. Nothing waits for it; the eviction raises an error at its
            end.
    """

    columns: tuple[Tensor, ...]
    keys: Tensor
    values: Tensor
    w_o: Tensor
    noise_keys: list[int]
    replace_nonfinite: Callable[[str, Tensor], Tensor] | None = None


class Scorer(Protocol):
    """Importance of every entry of a layer."""

    def statistics(self, n: int) -> tuple[ColumnStatistic, ...]:
        """What attention has to report for a prompt of ``n`` tokens."""

    def __call__(self, view: LayerView) -> Tensor:
        """Importance, higher is kept: float32 ``[kv_heads, N]``."""


class Allocator(Protocol):
    """Entries for each kv head of a layer, beside the protected ones."""

    def counts(self, scores: Tensor, base: int, layer: int, layers: int) -> list[int]:
        """Split a layer's budget.

        Args:
            scores: importance of the candidates, ``[kv_heads, candidates]``.
            base: entries per head, on average over the model.

        Returns:
            Entries for each kv head. Over all layers they add up to base · kv_heads · layers.
        """


class Selector(Protocol):
    """Which entries are kept."""

    def protected(self, n: int, budget: int) -> tuple[int, int]:
        """First and last entries that are always kept; together at most ``budget``."""

    def __call__(self, scores: Tensor, counts: list[int], view: LayerView, n: int) -> Tensor:
        """Choose among the candidates.

        Args:
            scores: ``[kv_heads, candidates]``.
            counts: how many to keep for each head, at most ``candidates``.
            view: cut to the candidates.
            n: the prompt's length.

        Returns:
            bool ``[kv_heads, candidates]`` with exactly ``counts`` set in each row.
        """


@dataclass(frozen=True)
class Policy:
    """An eviction method with its settings.

    Attributes:
        name: what results are filed under.
        keep_ratio: share of the prompt's entries to keep, protected ones included, in (0, 1].
        min_eviction_seqlen: prompts of this many tokens or fewer are left whole.
        seed: for the methods that draw.
        decode_slack: go on evicting while decoding, whenever a head holds more than this many
            entries above its budget; None to let the cache grow with the answer.
        decode_drop: share of the budget that such an eviction frees beyond the excess.
    """

    name: str
    scorer: Scorer
    allocator: Allocator
    selector: Selector
    keep_ratio: float = 0.2
    min_eviction_seqlen: int = 2048
    seed: int = 0
    decode_slack: int | None = None
    decode_drop: float = 0.0

    def __post_init__(self) -> None:
        if budget.ratio(self.keep_ratio, "keep_ratio") == 0:
            raise InputError("keep_ratio must be above 0")
        if self.min_eviction_seqlen < 0:
            raise InputError("min_eviction_seqlen must not be negative")
        if self.decode_slack is not None and self.decode_slack < 0:
            raise InputError("decode_slack must not be negative")
        budget.ratio(self.decode_drop, "decode_drop")
        if getattr(self.allocator, "model_wide", False) and type(self.selector) is not TopK:
            raise InputError(
                "a model-wide allocation ranks entries by importance alone: it goes with a "
                "selector that takes the highest, as snapkv's, not with nacl's or criticalkv's"
            )

    def budget(self, n: int) -> int:
        """Entries per kv head, on average, that are kept of an ``n``-token prompt."""
        if n <= self.min_eviction_seqlen:
            return n
        return budget.per_head(n, budget.ratio(self.keep_ratio, "keep_ratio"))


@dataclass(frozen=True)
class Equal:
    """Every head of every layer keeps the same number of entries."""

    def counts(self, scores: Tensor, base: int, layer: int, layers: int) -> list[int]:
        """See :class:`Allocator`."""
        return [base] * scores.shape[0]


@dataclass(frozen=True)
class TopK:
    """The best-scored entries, beside attention sinks and the most recent tokens.

    Attributes:
        sinks, recent: first and last tokens that are always kept.
    """

    sinks: int = 0
    recent: int = 0

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.recent < 0:
            raise InputError("the numbers of sinks and recent tokens must not be negative")

    def protected(self, n: int, budget_: int) -> tuple[int, int]:
        """See :class:`Selector`."""
        return budget.protected(budget_, self.sinks, self.recent)

    def __call__(self, scores: Tensor, counts: list[int], view: LayerView, n: int) -> Tensor:
        """See :class:`Selector`."""
        return top_k(scores, counts)
