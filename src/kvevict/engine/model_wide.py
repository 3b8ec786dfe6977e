"""Entries of all layers under one budget, while the layers come: a running top-K (LaProx).

An entry outside the best K of the layers so far stays outside when more layers come, so the result
is that of one selection after the last layer; K entries and one layer are the most that is held.
How many of them each head has is known to the device alone until the end: the host waits once.
"""

from __future__ import annotations

from ..cache import LayerCache
from ..ops import nonzero, take_joined, top_k
from ..tensors import Tensor, namespace

PIECE = 1 << 17  # entries that are moved at a time, through a copy


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
            rows = nonzero(top_k(scores.unsqueeze(0), [most]).squeeze(0), most)
            scores = scores.index_select(0, rows)
            ends = ns.searchsorted(rows, ends.to(rows.dtype))
            for own, x in zip(self._parts, new):
                self._move(own, x, rows)
        else:
            for own, x in zip(self._parts, new):
                own[self.held : total] = x
        self._scores, self._ends, self.held = scores, ends, min(total, most)

    def _move(self, own: Tensor, new: Tensor, rows: Tensor) -> None:
        """Let ``rows`` of the entries held and the new ones, ascending, be the first of ``own``.

        No row moves up, so a piece is written where nothing is left to be read.
        """
        for start in range(0, rows.shape[0], PIECE):
            piece = rows[start : start + PIECE]
            own[start : start + piece.shape[0]] = take_joined(own[: self.held], new, piece)

    def layers(self) -> list[LayerCache]:
        """All layers so far, side by side in memory. The host waits for their lengths."""
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
