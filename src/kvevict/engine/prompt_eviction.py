"""One policy applied to one prompt, layer by layer, on the cache."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod
from typing import Callable

from .. import noise
from ..attention import Moments, Statistic
from ..cache import KVCache, LayerCache
from ..methods import LayerView, Policy
from ..ops import nonzero
from ..tensors import Tensor, integers, namespace
from .checks import Checks
from .model_wide import RunningBest


class Eviction:
    """Decides, stores and frees while a prompt is prefilled.

    Args:
        policy: what decides.
        n: tokens of the prompt.
        layers, kv_heads: of the model.
        example: counts into the noise of the policies that draw.
        record: note which positions are kept.
        question_tokens: how many of the prompt's last tokens are the question, where that is known.
        prefix_tokens: how many of its first tokens come before the context.

    Attributes:
        cache: where the kept entries go; whole once :meth:`finish` was called.
        statistics: what the prefill has to report; empty where nothing will be evicted.
        active: whether the prompt is long enough for anything to be evicted.
        noise_keys: the noise keys of each layer's kv heads.

    Raises:
        InputError: a part of the policy breaks its contract, here or in any method.
    """

    def __init__(
        self,
        policy: Policy,
        n: int,
        layers: int,
        kv_heads: int,
        example: int = 0,
        record: bool = False,
        question_tokens: int | None = None,
        prefix_tokens: int = 0,
    ) -> None:
        self.policy, self.n, self.layers, self.kv_heads = policy, n, layers, kv_heads
        self.example, self.record = example, record
        self.scorer, self.allocator, self.selector = (
            policy.scorer, policy.allocator, policy.selector
        )  # fmt: skip
        self.prompt = policy.shape(n, question_tokens, prefix_tokens)
        self.cache = KVCache(seen=n)
        self.budget = policy.entries(n)
        self.active = self.budget < n
        self.checks = Checks(policy.name)
        self.sinks, self.recent = self.protected(self.budget)
        self.statistics: tuple[Statistic, ...] = ()
        if self.active:
            asked = self.scorer.statistics(self.prompt)
            self.statistics = self.checks.statistics(self.scorer, asked)
        self._layer = 0  # the next one
        self._allotted = 0  # entries beside the protected ones, of the layers so far
        self._unread: list[tuple[LayerCache, Tensor]] = []  # whose lengths the device knows
        self._best: RunningBest | None = None  # of all layers, for model-wide budgets
        if self.active and self.allocator.scope == "model":
            self._best = RunningBest(self.budget * kv_heads * layers)
        self.noise_keys = noise.LayerKeys(policy.seed, example, layers, kv_heads)

    def add_layer(self, view: LayerView, scored: dict[object, Tensor] | None = None) -> None:
        """Store the next layer's share of ``view.keys`` and ``view.values``.

        Args:
            scored: the layer's scores so far, shared by the policies that run on one prefill: those
                with the same scorer and seed score once, unless the budget changes the scores.
        """
        layer = self._layer
        self._layer += 1
        if not self.active:
            self._hold(self._compact(view))
            return
        scored = {} if scored is None else scored
        key = (self.scorer, self.policy.seed, self.prompt if self.scorer.by_budget else None)
        if key not in scored:
            scored[key] = self.score(view, layer)
        scores = scored[key]
        if self._best:
            self._best.add(self._compact(view), *self._ranked(scores, layer))
            return
        sinks, recent = self.sinks, self.recent
        chosen = self.select(scores, view, layer, sinks, recent, lambda c: self._counts(c, layer))
        self._store(self._compact(view), *chosen)

    def finish(self) -> None:
        """After the last layer: raise what the checks saw, and read what the device alone knows.

        Raises:
            FloatingPointError: scores or weights that are not finite.
            InputError: a part that broke its contract.
        """
        self.checks.look()
        if self._best:
            for layer in self._best.layers():  # before, any entry might still have gone
                self._hold(layer)
            self._best = None
        if self._unread:
            layers, lengths = zip(*self._unread)
            self._unread.clear()
            for layer, own in zip(layers, namespace(lengths[0]).stack(lengths).tolist()):
                layer.lengths = own

    def _compact(self, view: LayerView) -> LayerCache:
        """All of a layer."""
        layer = LayerCache.compact(view.keys, view.values, self.record)
        if self.active and self.policy.decode_slack is not None:
            layer.columns = [_by_entry(statistic) for statistic in view.statistics]
        return layer

    def _store(self, layer: LayerCache, mask: Tensor, lengths: list[int] | Tensor) -> None:
        """Keep what bool ``mask [kv_heads, N]`` says, ``lengths[h]`` entries of head h."""
        if not isinstance(lengths, list) and self.policy.kv_dtype:
            lengths = lengths.tolist()  # the host waits: groups of keys begin with their heads
        if not isinstance(lengths, list):
            self._unread.append((layer, lengths))
            lengths = [self.budget * self.kv_heads]  # as of one head, until they are read
        layer.keep(nonzero(mask.reshape(-1), sum(lengths)), lengths)
        self._hold(layer)

    def _hold(self, layer: LayerCache) -> None:
        """Take a layer whose entries are final into the cache, quantised if the policy says so."""
        if self.policy.kv_dtype:
            layer.quantise(self.policy.kv_dtype)
        self.cache.layers.append(layer)

    def score(self, view: LayerView, layer: int) -> Tensor:
        """The scorer's importance ``[kv_heads, N]``, watched."""
        scores, shape = self.scorer(view), list(view.keys.shape[:2])
        self.checks.tensor(self.scorer, "scores", scores, view.keys, "float32", shape)
        return self._replace_nonfinite(layer, "scores", scores)

    def _replace_nonfinite(self, layer: int, what: str, x: Tensor) -> Tensor:
        """Watch ``x``, with 0 for what is not finite: a whole selection until it is looked at."""
        finite = x.isfinite()
        self.checks.watch(f"the {what} of layer {layer}", finite.all())
        return x.masked_fill(~finite, 0.0)

    def protected(self, entries: int) -> tuple[int, int]:
        """First and last entries that a head which keeps ``entries`` keeps in any case."""
        spans = self.selector.protected(self.prompt, entries)
        return self.checks.protected(self.selector, spans, entries)

    def select(
        self,
        scores: Tensor,
        view: LayerView,
        layer: int,
        sinks: int,
        recent: int,
        counts: Callable[[Tensor], list[int] | Tensor],
    ) -> tuple[Tensor, list[int] | Tensor]:
        """Protected entries and the selector's choice.

        Args:
            sinks, recent: first and last entries that are kept in any case.
            counts: entries for each head, from the candidates' scores.

        Returns:
            bool ``[kv_heads, N]``, and how many are set for each head: a tensor if ``counts`` is.
        """
        ns = namespace(scores)
        heads, n = scores.shape
        span = slice(sinks, n - recent)
        candidates = scores[:, span]
        inner = replace(
            view,
            statistics=tuple(_of_entries(statistic, span) for statistic in view.statistics),
            keys=view.keys[:, span],
            values=view.values[:, span],
            replace_nonfinite=partial(self._replace_nonfinite, layer),
        )
        numbers = counts(candidates)
        chosen = self.selector(candidates, numbers, inner, self.prompt)
        shape = list(candidates.shape)
        self.checks.tensor(self.selector, "its choice", chosen, scores, "bool", shape)
        self.checks.marked(self.selector, layer, chosen, integers(numbers, ns.int64, like=scores))
        parts = [
            ns.ones((heads, sinks), dtype=ns.bool, device=scores.device),
            chosen,
            ns.ones((heads, recent), dtype=ns.bool, device=scores.device),
        ]
        mask = ns.cat([part for part in parts if part.shape[-1]], dim=-1)
        if not isinstance(numbers, list):
            return mask, numbers + (sinks + recent)
        return mask, [sinks + count + recent for count in numbers]

    def _counts(self, candidates: Tensor, layer: int) -> list[int] | Tensor:
        base = self.budget - self.sinks - self.recent
        counts = self.allocator.counts(candidates, base, layer, self.layers)
        if isinstance(counts, type(candidates)):
            shared = base * self.kv_heads
            self.checks.shared(self.allocator, layer, counts, candidates, shared)
            self._allotted += shared
            counts = counts.clamp(min=0, max=candidates.shape[1])  # until the checks are looked at
            return counts if self.selector.takes_highest else counts.tolist()
        self.checks.counts(self.allocator, counts, *candidates.shape)
        self._allotted += sum(counts)
        total = base * self.kv_heads * self.layers
        if layer == self.layers - 1 and self._allotted != total:
            raise self.checks.refuse(
                f"{type(self.allocator).__name__} gave {self._allotted} entries to all layers "
                f"together, where {total} were to be split"
            )
        return counts

    def _ranked(self, scores: Tensor, layer: int) -> tuple[Tensor, int]:
        """For a model-wide budget: scores ``[kv_heads, N]``, and how many the layers so far keep.

        Protected entries are the best of all.
        """
        position = namespace(scores).arange(self.n, device=scores.device)
        fixed = (position < self.sinks) | (position >= self.n - self.recent)
        protected = self.sinks + self.recent
        free = (self.budget - protected) * self.kv_heads * self.layers
        most = protected * self.kv_heads * (layer + 1) + free
        return scores.masked_fill(fixed, float("inf")), most


def _of_entries(statistic: Tensor | Moments, span: slice) -> Tensor | Moments:
    """A statistic of some entries; moments are of no entries."""
    return statistic if isinstance(statistic, Moments) else statistic[..., span]


def _by_entry(statistic: Tensor) -> Tensor:
    """``[kv_heads, N]`` or ``[kv_heads, …, N]`` as rows, one for each entry."""
    kv_heads, *each, n = statistic.shape
    per = prod(each)
    return statistic.reshape(kv_heads, per, n).swapaxes(-1, -2).reshape(-1, per)
