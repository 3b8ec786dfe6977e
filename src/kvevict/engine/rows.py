"""One step of several sequences: what is done for all at once, and what for each.

Projections and MLP take one token of each as a batch. Attention is one kernel's where there is one,
whatever each sequence holds; otherwise, and for sequences that evict as they grow, one's after
another's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from ..tensors import Tensor, integers, namespace
from .session import Session, Start


class Rows(ABC):
    """Sessions that take their steps together."""

    def __init__(self, sessions: list[Session]) -> None:
        self.sessions, self.model = sessions, sessions[0].model

    def step(self, ids: list[int]) -> Tensor:
        """Take in one token of each; the next logits ``[rows, vocabulary]``."""
        hidden = self.extend_hidden(self.model.embed(ids).swapaxes(0, 1))
        return self.model.logits(hidden).reshape(len(ids), -1)

    def extend_hidden(self, hidden: Tensor) -> Tensor:
        """As :meth:`step`, from embeddings ``[rows, 1, hidden]`` to the last layer's output."""
        starts = tuple(session.cache.seen for session in self.sessions)
        hidden = self.layers(hidden, starts[0] if len(set(starts)) == 1 else starts)
        for session in self.sessions:
            session.cache.seen += 1
        return hidden

    def layers(self, hidden: Tensor, start: Start) -> Tensor:
        """All layers, of tokens at ``start``."""
        for layer in range(self.model.layers):
            mixed = self.attend(layer, hidden, start).reshape(len(hidden), 1, -1)
            hidden = self.model.finish_layer(layer, hidden, mixed)
        return hidden

    @abstractmethod
    def attend(self, layer: int, hidden: Tensor, start: Start) -> Tensor:
        """Take ``[rows, 1, hidden]`` into a layer's caches and attend: q's heads, row by row."""


class OneByOne(Rows):
    """Rows that attend one after another."""

    def attend(self, layer: int, hidden: Tensor, start: Start) -> Tensor:
        q, k, v = self.model.project(layer, hidden, start)
        rows = zip(self.sessions, *(x.unbind(0) for x in (q, k, v)))
        mixed = [session.attend(layer, *own) for session, *own in rows]
        return mixed[0] if len(mixed) == 1 else namespace(q).cat(mixed, dim=0)


class Together(Rows):
    """Rows whose attention is one kernel a layer, on a GPU."""

    def __init__(self, sessions: list[Session]) -> None:
        from .table import Table  # late: it brings Triton

        super().__init__(sessions)
        self._table = Table(sessions[0].cache, len(sessions))

    def extend_hidden(self, hidden: Tensor) -> Tensor:
        self._table.put([session.cache for session in self.sessions])
        tails = [session.cache.layers[0].tail + 1 for session in self.sessions]
        self._tail_lens = integers(tails, namespace(hidden).int32, like=hidden)
        hidden = super().extend_hidden(hidden)
        lengthen_tails(self.sessions)
        return hidden

    def attend(self, layer: int, hidden: Tensor, start: Start) -> Tensor:
        q, k, v, rope = self.model.unturned(layer, hidden, start)
        return self._table.attend(layer, q, k, v, self._tail_lens, rope)


def lengthen_tails(sessions: list[Session]) -> None:
    """Count a token that a kernel has written to every tail."""
    for session in sessions:
        for layer in session.cache.layers:
            layer.tail += 1


def take(x: Tensor, rows: list[int]) -> Tensor:
    """Rows of ``x``, and ``x`` itself where they are all of them in order."""
    if rows == list(range(len(x))):
        return x
    return x.index_select(0, integers(rows, namespace(x).int64, like=x))
