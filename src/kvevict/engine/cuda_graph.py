"""One decoding step as a CUDA graph: the kernels of all layers in a single launch (PyTorch).

A step is 47 kernels a layer, most of them tiny. Launching them from Python takes several times as
long as the GPU needs to read weights and cache; replaying a recording of them does not.
"""

from __future__ import annotations

import torch

from ..attention.cached import attend_on_gpu
from ..ops import attention_kernels
from .session import Session

WORTH = 16  # tokens to come for which to record: that takes as long as some three steps


def applies(session: Session, tokens: int) -> bool:
    """Whether a session, or a batch of them, should take in its next ``tokens`` from a graph."""
    return (
        tokens >= WORTH
        and session._decoding is None
        and attention_kernels(session.cache.layers[0].keys) is not None
        and session.cache.seen + tokens <= session.model.max_positions
    )


class GraphStep:
    """What :meth:`Session.step` does, recorded once and replayed.

    The graph writes to the session's own tails, for which room must have been made, and its memory
    goes back with this object. Nothing else may extend the session meanwhile.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.logits = torch.empty_like(session.logits)
        # What changes from step to step lies on the device, where a recording finds it.
        self.ids = self.logits.new_zeros((session.logits[..., 0].numel(), 1), dtype=torch.int64)
        self.tail = self.ids.new_tensor([session.cache.layers[0].tail])
        self.prompt = session.cache.seen - session.cache.layers[0].tail
        self._warm = False
        self._graph: torch.cuda.CUDAGraph | None = None

    @torch.no_grad()
    def __call__(self, ids: list[int]) -> torch.Tensor:
        """Take in one token of each sequence; the next logits, which the next call overwrites."""
        self.ids.copy_(torch.tensor(ids).unsqueeze(1))
        if self._warm:
            if self._graph is None:
                self._graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self._graph):
                    self._step()
            self._graph.replay()
        else:  # what a recording cannot hold: compiling, and tables made at first use
            self._step()
            self._warm = True
        for layer in self.session.cache.layers:
            layer.tail += 1
        self.session.cache.seen += 1
        self.session.logits = self.logits
        return self.logits

    def _step(self) -> None:
        model = self.session.model
        hidden = model.embed(self.ids)
        position, tail = self.tail + self.prompt, (self.tail + 1).int()
        for index, layer in enumerate(self.session.cache.layers):
            q, k, v = model.project(index, hidden, position)
            layer.tail_keys.index_copy_(1, self.tail, k.flatten(0, 1))
            layer.tail_values.index_copy_(1, self.tail, v.flatten(0, 1))
            mixed = attend_on_gpu(q.flatten(0, 1), layer, tail)
            hidden = model.finish_layer(index, hidden, mixed.reshape(len(hidden), 1, -1))
        self.logits.copy_(model.logits(hidden))
        self.tail += 1
