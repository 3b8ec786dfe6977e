"""One decoding step as a CUDA graph: the kernels of all layers in a single launch (PyTorch).

A step is hundreds of kernels, many of them tiny. Launching them from Python takes several times as
long as the GPU needs to read weights and caches; replaying a recording of them does not.
"""

from __future__ import annotations

from math import ceil

import torch

from ..tensors import Tensor
from .rows import Rows, Together, lengthen_tails, take
from .session import Session, Start
from .table import Table

WORTH = 16  # steps to come for which to record: that takes as long as some three of them
SPARE = 1.25  # of programs and places, so that other sequences may take those of some


class GraphStep(Rows):
    """A step recorded once and replayed.

    Who leaves makes a place free, and who joins takes one, while the recording stays as it is. The
    graph writes to the sessions' own tails; its memory goes back with this object.

    Args:
        sessions: what is in the places.
        places: how many there are; by default none is free.
    """

    def __init__(self, sessions: list[Session], places: int | None = None) -> None:
        super().__init__(sessions)
        places, logits = places or len(sessions), sessions[0].logits
        self._places: list[Session | None] = [*sessions, *[None] * (places - len(sessions))]
        self._table = Table(sessions[0].cache, places, SPARE)
        # What changes from step to step lies on the device, where a recording finds it: ids,
        # positions and lengths of the tails.
        self._inputs = logits.new_zeros((3, places), dtype=torch.int64)
        self._logits = logits.new_empty((places, logits.shape[-1]))
        self._launch: tuple[list, int] | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def seat(self, sessions: list[Session]) -> GraphStep:
        """Take these for those so far; or another step does, with places that suit their number."""
        if len(sessions) > len(self._places):
            return GraphStep(sessions, ceil(SPARE * len(sessions)))
        if 2 * len(sessions) <= len(self._places):
            return GraphStep(sessions)
        joining = iter([session for session in sessions if session not in self._places])
        staying = [session if session in sessions else None for session in self._places]
        self._places = [session or next(joining, None) for session in staying]
        self.sessions = sessions
        return self

    def leave(self, session: Session) -> None:
        """Make a session's place free, so that nothing here holds its memory."""
        self._places = [None if other is session else other for other in self._places]
        self.sessions = [other for other in self.sessions if other is not session]

    @torch.no_grad()
    def step(self, ids: list[int]) -> Tensor:
        """See :class:`Rows`; the next call overwrites the logits."""
        self._table.put([session and session.cache for session in self._places])
        inputs = [[0, 0, 1]] * len(self._places)
        seats = {session: place for place, session in enumerate(self._places)}
        places = [seats[session] for session in self.sessions]
        for place, token, session in zip(places, ids, self.sessions):
            inputs[place] = [token, session.cache.seen, session.cache.layers[0].tail + 1]
        self._inputs.copy_(torch.tensor([*zip(*inputs)]))
        self._run()
        lengthen_tails(self.sessions)
        for session in self.sessions:
            session.cache.seen += 1
        return take(self._logits, places)

    def extend_hidden(self, hidden: Tensor) -> Tensor:
        """See :class:`Rows`: not recorded."""
        return Together(self.sessions).extend_hidden(hidden)

    def attend(self, layer: int, hidden: Tensor, start: Start) -> Tensor:
        """See :class:`Rows`."""
        q, k, v, rope = self.model.unturned(layer, hidden, start)
        return self._table.attend(layer, q, k, v, self._tail_lens, rope)

    def _run(self) -> None:
        """Record or replay, and neither at first: compiling is nothing that a graph can hold."""
        if self._launch != self._table.launch:
            self._launch, self._graph = self._table.launch, None
            self._pass()
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._pass()
        self._graph.replay()

    def _pass(self) -> None:
        ids, positions, tails = self._inputs
        self._tail_lens = tails.int()
        hidden = self.layers(self.model.embed(ids.unsqueeze(1)), positions)
        self._logits.copy_(self.model.logits(hidden))
