"""Entries of all layers under one budget, while the layers come: a running top-K (LaProx).

An entry outside the best K of the layers so far stays outside when more layers come, so the result
is that of one selection after the last layer; K entries and one layer are the most that is held.
An entry that stays is not moved until the end: a new one is written where another was. How many of
them each head has is known to the device alone until then: the host waits once.
"""

from __future__ import annotations

from ..cache import LayerCache
from ..ops import nonzero, put, reuse, top_k
from ..tensors import Tensor, namespace

COLUMNS = 16  # of all entries that are put in order at a time, through a copy


class RunningBest:
    """The best entries so far, head after head and layer after layer.

    Args:
        capacity: K, what is kept of all layers.

    Attributes:
        held: how many there are.
    """

    def __init__(self, capacity: int) -> None:
        self.held = 0
        self._capacity = capacity
        self._parts: list[Tensor] = []  # [K, …] each: keys, values, and what else goes with them
        self._heads = self._columns = 0  # of a layer
        self._scores: Tensor | None = None  # [held]
        self._slots: Tensor | None = None  # [held], where each lies; None: in order
        self._ends: Tensor | None = None  # where each head's entries end

    def add(self, layer: LayerCache, scores: Tensor, most: int) -> None:
        """Take in a layer's entries; of all, the best ``most`` remain, of equals the first.

        Args:
            layer: whole, as :meth:`~kvevict.cache.LayerCache.compact` makes it.
            scores: float32 ``[kv_heads, N]``, infinite for those that are always kept.
            most: from layer to layer no less, and in the end K.
        """
        ns, new = namespace(scores), _parts(layer)
        heads, n = scores.shape
        ends = self.held + n * ns.arange(1, heads + 1, device=scores.device)
        scores = scores.reshape(-1)
        if not self._parts:
            self._heads, self._columns = heads, len(layer.columns)
            self._parts = [x.new_empty([self._capacity, *x.shape[1:]]) for x in new]
        else:
            ends = ns.cat([self._ends, ends], dim=0)
            scores = ns.cat([self._scores, scores], dim=0)
        total = scores.shape[0]
        if total > most:
            mask = top_k(scores.unsqueeze(0), [most]).squeeze(0)
            rows = nonzero(mask, most)
            scores = scores.index_select(0, rows)
            ends = ns.searchsorted(rows, ends.to(rows.dtype))
            if self._slots is None:
                self._slots = ns.arange(self.held, dtype=rows.dtype, device=scores.device)
            self._slots = reuse(mask, rows, self._slots, ends[-heads - 1 : -heads])
            for own, x in zip(self._parts, new):
                put(own, x, rows, self._slots, self.held)
        else:
            for own, x in zip(self._parts, new):
                own[self.held : total] = x
        self._scores, self._ends, self.held = scores, ends, min(total, most)

    def _put_in_order(self, own: Tensor) -> None:
        width = own.shape[1] if own.ndim > 1 else 1
        for first in range(0, width, COLUMNS):
            part = own[: self.held, first : first + COLUMNS] if own.ndim > 1 else own[: self.held]
            part[:] = part.index_select(0, self._slots)

    def layers(self) -> list[LayerCache]:
        """All layers so far, side by side in memory. The host waits for their lengths."""
        if self._slots is not None:
            for own in self._parts:
                self._put_in_order(own)
        ends = [0, *self._ends.tolist()]
        lengths = [end - start for start, end in zip(ends, ends[1:])]
        layers = []
        for first in range(0, len(lengths), self._heads):
            after = first + self._heads
            keys, values, *rest = (own[ends[first] : ends[after]] for own in self._parts)
            layer = LayerCache(keys, values, lengths[first:after])
            layer.columns, positions = rest[: self._columns], rest[self._columns :]
            layer.positions = positions[0] if positions else None
            layers.append(layer)
        return layers


def _parts(layer: LayerCache) -> list[Tensor]:
    """All that there is for each entry."""
    positions = [] if layer.positions is None else [layer.positions]
    return [layer.keys, layer.values, *layer.columns, *positions]
