"""One policy applied to one prompt, layer by layer, on the cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Callable

from .. import noise
from ..attention import ColumnStatistic
from ..cache import KVCache, LayerCache
from ..tensors import Tensor, namespace
from .base import LayerView, Policy, top_k


class Eviction:
    """Decides, stores and frees while a prompt is prefilled.

    Attributes:
        cache: where the kept entries go.
        statistics: what attention has to report; empty where nothing will be evicted.
        active: whether the prompt is long enough for anything to be evicted.
        columns: for policies that go on evicting while decoding, by layer: each statistic of the
            entries held, ``[sum(lengths), 1 or group]``, row by row beside the cache's keys.
    """

    def __init__(
        self,
        policy: Policy,
        n: int,
        layers: int,
        kv_heads: int,
        example: int = 0,
        record: bool = False,
    ) -> None:
        self.policy, self.n, self.layers, self.kv_heads = policy, n, layers, kv_heads
        self.example, self.record = example, record
        self.cache = KVCache(seen=n)
        self.budget = policy.budget(n)
        self.active = self.budget < n
        self.sinks, self.recent = policy.selector.protected(n, self.budget)
        self.statistics: tuple[ColumnStatistic, ...] = (
            policy.scorer.statistics(n) if self.active else ()
        )
        self.model_wide = getattr(policy.allocator, "model_wide", False)
        self.columns: list[list[Tensor]] = []
        self._scores: list[Tensor] = []  # of the entries held, for model-wide budgets

    def noise_keys(self, layer: int, step: int = 0) -> list[int]:
        """The noise keys of a layer's kv heads; ``step`` counts evictions while decoding."""
        counters = (self.policy.seed, self.example, layer)
        return [noise.key(*counters, head, step) for head in range(self.kv_heads)]

    def add_layer(self, view: LayerView, scored: dict[object, Tensor] | None = None) -> None:
        """Store the next layer's share of ``view.keys`` and ``view.values``.

        Args:
            scored: the layer's scores so far, shared by the policies that run on one prefill: those
                with the same scorer and seed score once.
        """
        layer = len(self.cache.layers)
        if not self.active:
            self._store(view, None)
            return
        scored = {} if scored is None else scored
        key = (self.policy.scorer, self.policy.seed)
        if key not in scored:
            scored[key] = self.score(view, layer)
        scores = scored[key]
        if self.model_wide:
            self._store(view, None)
            self._trim(scores)
            return
        sinks, recent = self.sinks, self.recent
        mask = self.select(scores, view, layer, sinks, recent, lambda c: self._counts(c, layer))
        self._store(view, mask)

    def _store(self, view: LayerView, mask: Tensor | None) -> None:
        """Keep the entries where bool ``mask [kv_heads, N]`` is set, all where it is None."""
        self.cache.layers.append(LayerCache.compact(view.keys, view.values, mask, self.record))
        if self.active and self.policy.decode_slack is not None:
            self.columns.append([_by_entry(column, mask) for column in view.columns])

    def score(self, view: LayerView, layer: int) -> Tensor:
        """The scorer's importance, checked: ``[kv_heads, N]``.

        Raises:
            FloatingPointError: a score is NaN or infinite.
        """
        scores = self.policy.scorer(view)
        if not bool(scores.isfinite().all()):
            raise FloatingPointError(
                f"{self.policy.name}: the scores of layer {layer} are not finite"
            )
        return scores

    def select(
        self,
        scores: Tensor,
        view: LayerView,
        layer: int,
        sinks: int,
        recent: int,
        counts: Callable[[Tensor], list[int]],
    ) -> Tensor:
        """Protected entries and the selector's choice: bool ``[kv_heads, N]``.

        Args:
            sinks, recent: first and last entries that are kept in any case.
            counts: entries for each head, from the candidates' scores.

        Raises:
            FloatingPointError: the selector met a NaN or an infinity.
        """
        ns = namespace(scores)
        heads, n = scores.shape
        span = slice(sinks, n - recent)
        candidates = scores[:, span]
        inner = replace(view, keys=view.keys[:, span], values=view.values[:, span])
        try:
            chosen = self.policy.selector(candidates, counts(candidates), inner, self.n)
        except FloatingPointError as error:
            raise FloatingPointError(f"{self.policy.name}: in layer {layer} {error}") from None
        parts = [
            ns.ones((heads, sinks), dtype=ns.bool, device=scores.device),
            chosen,
            ns.ones((heads, recent), dtype=ns.bool, device=scores.device),
        ]
        return ns.cat([part for part in parts if part.shape[-1]], dim=-1)

    def _counts(self, candidates: Tensor, layer: int) -> list[int]:
        base = self.budget - self.sinks - self.recent
        return self.policy.allocator.counts(candidates, base, layer, self.layers)

    def _trim(self, scores: Tensor) -> None:
        """Drop what can no longer be among the best of the whole model.

        An entry outside the best K of the layers so far stays outside when more layers come, so
        the result is that of one selection after the last layer; K entries and one layer are the
        most that is held.
        """
        ns = namespace(scores)
        position = ns.arange(self.n, device=scores.device)
        fixed = (position < self.sinks) | (position >= self.n - self.recent)
        self._scores.append(scores.masked_fill(fixed, float("inf")).reshape(-1))
        protected = self.sinks + self.recent
        free = (self.budget - protected) * self.kv_heads * self.layers
        most = protected * self.kv_heads * len(self._scores) + free
        held = ns.cat(self._scores, dim=0)
        if held.shape[0] <= most:
            return
        keep = top_k(held.unsqueeze(0), [most]).squeeze(0)
        start = 0
        for index, (own, layer) in enumerate(zip(self._scores, self.cache.layers)):
            mine = keep[start : start + own.shape[0]]
            start += own.shape[0]
            if not bool(mine.all()):
                kept = mine.nonzero().reshape(-1)
                layer.drop(mine)
                self._scores[index] = own.index_select(0, kept)
                if self.columns:
                    self.columns[index] = [c.index_select(0, kept) for c in self.columns[index]]


def _by_entry(column: Tensor, mask: Tensor | None) -> Tensor:
    """``[kv_heads, N]`` or ``[kv_heads, group, N]`` as rows, one for each entry masked in."""
    column = column.unsqueeze(1) if len(column.shape) == 2 else column
    rows = column.swapaxes(-1, -2).reshape(-1, column.shape[1])
    return rows if mask is None else rows.index_select(0, mask.reshape(-1).nonzero().reshape(-1))
