"""One decoding step as a CUDA graph: the kernels of all layers in a single launch.

A step is hundreds of kernels, many of them tiny. Launching them from Python takes several times as
long as the GPU needs to read weights and caches; replaying a recording of them does not. Where a
step cannot be recorded, or what is replayed is not what was recorded, it goes on unrecorded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import ceil

from ..tensors import Tensor, integers, namespace
from .rows import Rows, Together, lengthen_tails, take
from .session import Session, Start
from .table import Table

WORTH = 16  # steps to come for which to record: that takes as long as some three of them
SPARE = 1.25  # of programs and places, so that other sequences may take those of some
SAME = 0.02  # of the logits' norm, between a step and its first replay

# Whether replays are right, by framework. PyTorch's are held to the loop, to the bit, by tests on a
# GPU. Paddle's never ran on one: the first of a process is held to the same step unrecorded.
_right: dict[str, bool] = {"torch": True}


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
        self._framework = namespace(logits)
        # What changes from step to step lies on the device, where a recording finds it: ids,
        # positions and lengths of the tails.
        self._inputs = logits.new_zeros((3, places), dtype=self._framework.int64)
        self._logits = logits.new_zeros((places, logits.shape[-1]))
        self._launch: tuple | None = None
        self._replay: Callable[[], None] | None = None

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

    def step(self, ids: list[int]) -> Tensor:
        """Take in one token of each; the next logits, which the next call overwrites."""
        self._table.put([session and session.cache for session in self._places])
        inputs = [[0, 0, 1]] * len(self._places)
        seats = {session: place for place, session in enumerate(self._places)}
        places = [seats[session] for session in self.sessions]
        for place, token, session in zip(places, ids, self.sessions):
            inputs[place] = [token, session.cache.seen, session.cache.layers[0].tail + 1]
        with self._framework.no_grad():
            self._inputs[:] = integers([*zip(*inputs)], self._inputs.dtype, like=self._inputs)
            self._run(places, 1 + max(session.cache.seen for session in self.sessions))
        lengthen_tails(self.sessions)
        for session in self.sessions:
            session.cache.seen += 1
        return take(self._logits, places)

    def extend_hidden(self, hidden: Tensor) -> Tensor:
        """From embeddings to the last layer's output, not recorded."""
        return Together(self.sessions).extend_hidden(hidden)

    def attend(self, layer: int, hidden: Tensor, start: Start) -> Tensor:
        q, k, v, rope = self.model.unturned(layer, hidden, start)
        return self._table.attend(layer, q, k, v, self._tail_lens, rope)

    def _run(self, places: list[int], tokens: int) -> None:
        """Record or replay, and neither at first: compiling is nothing that a graph can hold.

        Args:
            places: those that are taken.
            tokens: of the longest sequence.
        """
        launch = self._table.launch, self.model.reach(tokens)
        if self._launch != launch or not _right.get(self._framework.__name__, True):
            self._launch, self._replay = launch, None
            self._pass()
            return
        if self._replay is None:
            self._replay = self._record(places)
        self._replay()

    def _record(self, places: list[int]) -> Callable[[], None]:
        """What replays a step; the step itself where that cannot be recorded, which is told."""
        framework = self._framework.__name__
        try:
            replay = _RECORD[framework](self._pass, self._logits)
            if framework not in _right:
                self._check(replay, places)
        except Exception as error:  # each framework has kinds of its own
            _right[framework] = False
            why = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            print(f"decoding goes on without a CUDA graph, slower: {why}", file=sys.stderr)
            return self._pass
        _right[framework] = True
        return replay

    def _check(self, replay: Callable[[], None], places: list[int]) -> None:
        """Raise RuntimeError unless a replay writes the logits that the step itself does."""
        self._pass()
        expected = self._logits.clone()
        self._logits[:] = float("nan")
        replay()
        off = [(self._logits[place] - expected[place]).norm() for place in places]
        if not all(float(x) <= SAME * float(expected[p].norm()) for x, p in zip(off, places)):
            raise RuntimeError("what is replayed is not what was recorded")

    def _pass(self) -> None:
        ids, positions, tails = self._inputs
        self._tail_lens = tails.int()
        hidden = self.layers(self.model.embed(ids.unsqueeze(1)), positions)
        logits = self.model.logits(hidden).reshape(self._logits.shape)
        self._logits.copy_(logits, False)  # no blocking to Paddle; to PyTorch here the default
        del self._tail_lens  # memory of a recording, which may go before this object does


def _record_torch(run: Callable[[], None], like: Tensor) -> Callable[[], None]:
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _record_paddle(run: Callable[[], None], like: Tensor) -> Callable[[], None]:
    import paddle
    from paddle.device.cuda.graphs import CUDAGraph

    graph = CUDAGraph(paddle.CUDAPlace(like.place.gpu_device_id()))  # or it takes the first GPU
    graph.capture_begin()
    try:
        run()
    finally:
        graph.capture_end()
    return graph.replay


_RECORD = {"torch": _record_torch, "paddle": _record_paddle}
