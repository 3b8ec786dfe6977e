"""Sequences that decode side by side, one token of each a step.

The weights are read once a step for all of them. Each keeps the cache that it has: sequences may
differ in position, in length and in policy, and join and leave without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ..ops import attention_kernels, reads
from ..tensors import Tensor, namespace
from .rows import OneByOne, Rows, Together, take
from .session import Session, check_positions

if TYPE_CHECKING:
    from .cuda_graph import GraphStep


class Batch:
    """Sessions side by side.

    Args:
        sessions: prefilled, of one model.
        steps: how many are to come, as far as is known: on a GPU many are worth a CUDA graph.

    Attributes:
        sessions: one a row. Between steps each can be used by itself.
    """

    def __init__(self, sessions: Iterable[Session] = (), steps: int = 0) -> None:
        self.sessions = list(sessions)
        self.steps = steps
        self._parts: list[tuple[list[int], Rows]] = []
        self._graphs: dict[str | None, GraphStep] = {}  # by what caches are quantised to

    def join(self, session: Session) -> None:
        """A further row, the last."""
        self.sessions.append(session)
        self._parts.clear()

    def leave(self, row: int) -> Session:
        """Take a row out; those after it move up. Its memory is no longer held here."""
        session = self.sessions.pop(row)
        session.logits = session.logits.clone()  # the next step overwrites the batch's
        self._parts.clear()
        for graph in self._graphs.values():
            graph.leave(session)
        return session

    def step(self, ids: list[int]) -> Tensor:
        """Take in one token of each row.

        Returns:
            The next logits, ``[rows, vocabulary]``; each session has its own. They are overwritten
            by the next step.

        Raises:
            InputError: a row is at the end of the model's positions.
        """
        logits = self._by_part(lambda rows, part: part.step([ids[row] for row in rows]))
        for session, own in zip(self.sessions, logits.unbind(0)):
            session.logits = own
        return logits

    def extend_hidden(self, hidden: Tensor) -> Tensor:
        """As :meth:`step`, from embeddings ``[rows, 1, hidden]`` to the last layer's output."""
        return self._by_part(lambda rows, part: part.extend_hidden(take(hidden, rows)))

    def _by_part(self, run: Callable[[list[int], Rows], Tensor]) -> Tensor:
        """The results of the parts, in the order of the rows."""
        for session in self.sessions:
            check_positions(session.model, session.cache.seen + 1)
        self._parts = self._parts or self._split()
        results = [run(*part) for part in self._parts]
        if len(results) == 1:
            return results[0]
        order = [row for rows, _ in self._parts for row in rows]
        places = sorted(range(len(order)), key=order.__getitem__)
        return take(namespace(results[0]).cat(results, dim=0), places)

    def _split(self) -> list[tuple[list[int], Rows]]:
        """Rows whose attention is one kernel, and rows that go one by one.

        A kernel's caches are quantised alike. One by one go those that evict as they grow, and all
        whose caches no kernel reads.
        """
        keys = self.sessions[0].cache.layers[0].keys
        framework = namespace(keys).__name__ if attention_kernels(keys) else None
        together: dict[str | None, list[int]] = {}
        alone = []
        for row, session in enumerate(self.sessions):
            kv_dtype = session.cache.layers[0].kv_dtype
            if framework and not session.evicts and reads(kv_dtype, framework):
                together.setdefault(kv_dtype, []).append(row)
            else:
                alone.append(row)
        parts = [(alone, OneByOne([self.sessions[row] for row in alone]))] if alone else []
        for kv_dtype, rows in together.items():
            parts.append((rows, self._together(kv_dtype, [self.sessions[row] for row in rows])))
        return parts

    def _together(self, kv_dtype: str | None, sessions: list[Session]) -> Rows:
        from . import cuda_graph  # late: it brings Triton

        if self.steps < cuda_graph.WORTH:
            return Together(sessions)
        graph = self._graphs.get(kv_dtype)
        graph = graph.seat(sessions) if graph else cuda_graph.GraphStep(sessions)
        self._graphs[kv_dtype] = graph
        return graph
