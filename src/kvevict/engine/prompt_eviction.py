"""One policy applied to one prompt, layer by layer, on the cache."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Callable

from .. import noise
from ..attention import ColumnStatistic
from ..cache import KVCache, LayerCache
from ..methods.base import LayerView, Policy
from ..ops import nonzero, top_k
from ..tensors import Tensor, integers, namespace


class Eviction:
    """Decides, stores and frees while a prompt is prefilled.

    Attributes:
        cache: where the kept entries go.
        statistics: what attention has to report; empty where nothing will be evicted.
        active: whether the prompt is long enough for anything to be evicted.
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
        self._scores: Tensor | None = None  # of the entries held, for model-wide budgets
        self._watched: list[tuple[str, Tensor]] = []

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
            self._store(view)
            return
        scored = {} if scored is None else scored
        key = (self.policy.scorer, self.policy.seed)
        if key not in scored:
            scored[key] = self.score(view, layer)
        scores = scored[key]
        if self.model_wide:
            self._store(view)
            self._trim(scores)
            return
        sinks, recent = self.sinks, self.recent
        chosen = self.select(scores, view, layer, sinks, recent, lambda c: self._counts(c, layer))
        self._store(view, *chosen)

    def _store(
        self, view: LayerView, mask: Tensor | None = None, lengths: list[int] | None = None
    ) -> None:
        """Keep what bool ``mask [kv_heads, N]`` says, ``lengths[h]`` entries of head h; or all."""
        layer = LayerCache.compact(view.keys, view.values, self.record)
        if self.active and self.policy.decode_slack is not None:
            layer.columns = [_by_entry(column) for column in view.columns]
        if mask is not None:
            layer.keep(nonzero(mask.reshape(-1), sum(lengths)), lengths)
        self.cache.layers.append(layer)

    def watch(self, what: str, finite: Tensor) -> None:
        """Have :meth:`check` look whether bool ``finite []`` is set. Nothing waits for it here."""
        self._watched.append((what, finite))

    def check(self) -> None:
        """Look at all that was watched since the last time.

        Raises:
            FloatingPointError: the first of it that is not finite.
        """
        if not self._watched:
            return
        names, flags = zip(*self._watched)
        self._watched.clear()
        for what, finite in zip(names, namespace(flags[0]).stack(flags).tolist()):
            if not finite:
                raise FloatingPointError(f"{self.policy.name}: {what} are not finite")

    def score(self, view: LayerView, layer: int) -> Tensor:
        """The scorer's importance ``[kv_heads, N]``, watched."""
        return self._replace_nonfinite(layer, "scores", self.policy.scorer(view))

    def _replace_nonfinite(self, layer: int, what: str, x: Tensor) -> Tensor:
        """Watch ``x``, with 0 for what is not finite: a sound selection until check() raises."""
        finite = x.isfinite()
        self.watch(f"the {what} of layer {layer}", finite.all())
        return x.masked_fill(~finite, 0.0)

    def select(
        self,
        scores: Tensor,
        view: LayerView,
        layer: int,
        sinks: int,
        recent: int,
        counts: Callable[[Tensor], list[int]],
    ) -> tuple[Tensor, list[int]]:
        """Protected entries and the selector's choice.

        Args:
            sinks, recent: first and last entries that are kept in any case.
            counts: entries for each head, from the candidates' scores.

        Returns:
            bool ``[kv_heads, N]``, and how many are set for each head.
        """
        ns = namespace(scores)
        heads, n = scores.shape
        span = slice(sinks, n - recent)
        candidates = scores[:, span]
        inner = replace(
            view,
            keys=view.keys[:, span],
            values=view.values[:, span],
            replace_nonfinite=partial(self._replace_nonfinite, layer),
        )
        own = counts(candidates)
        chosen = self.policy.selector(candidates, own, inner, self.n)
        parts = [
            ns.ones((heads, sinks), dtype=ns.bool, device=scores.device),
            chosen,
            ns.ones((heads, recent), dtype=ns.bool, device=scores.device),
        ]
        mask = ns.cat([part for part in parts if part.shape[-1]], dim=-1)
        return mask, [sinks + count + recent for count in own]

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
        scores = scores.masked_fill(fixed, float("inf")).reshape(-1)
        held = scores if self._scores is None else ns.cat([self._scores, scores], dim=0)
        protected = self.sinks + self.recent
        free = (self.budget - protected) * self.kv_heads * self.layers
        most = protected * self.kv_heads * len(self.cache.layers) + free
        if held.shape[0] > most:
            rows = nonzero(top_k(held.unsqueeze(0), [most]).squeeze(0), most)
            held = held.index_select(0, rows)
            self._keep(rows)
        self._scores = held

    def _keep(self, rows: Tensor) -> None:
        """Keep these of all entries held, which are counted through from the first layer's."""
        ns = namespace(rows)
        lengths = [length for layer in self.cache.layers for length in layer.lengths]
        ends = [0, *accumulate(lengths)]
        # How many come before each head's end: the one thing that the host has to wait for.
        bounds = ns.searchsorted(rows, integers(ends, rows.dtype, like=rows)).tolist()
        kept = [after - before for before, after in zip(bounds, bounds[1:])]
        for index, layer in enumerate(self.cache.layers):
            first, last = index * self.kv_heads, (index + 1) * self.kv_heads
            layer.keep(rows[bounds[first] : bounds[last]], kept[first:last], ends[first])


def _by_entry(column: Tensor) -> Tensor:
    """``[kv_heads, N]`` or ``[kv_heads, group, N]`` as rows, one for each entry."""
    column = column.unsqueeze(1) if len(column.shape) == 2 else column
    return column.swapaxes(-1, -2).reshape(-1, column.shape[1])
