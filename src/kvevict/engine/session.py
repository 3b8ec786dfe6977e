"""A model taken apart, and one sequence on it that can go on."""

from __future__ import annotations

from copy import copy
from typing import Protocol

from ..attention.cached import attend_cached
from ..errors import InputError
from ..tensors import Tensor
from .decode_eviction import DecodeEviction
from .prompt_eviction import Eviction


class Decoder(Protocol):
    """What a backend offers of a model: a decoder-only transformer, taken apart.

    Attributes:
        layers, kv_heads: how many there are.
        max_positions: tokens of a sequence that the model has positions for.
    """

    layers: int
    kv_heads: int
    max_positions: int

    def embed(self, ids: list[int] | Tensor) -> Tensor:
        """Hidden states ``[1, tokens, hidden]``, or ``[batch, …]`` of a tensor ``[batch, tokens]``.

        On PyTorch ``start`` below may be a tensor, too: a CUDA graph finds both on the device.
        """

    def project(self, layer: int, hidden: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of tokens at positions ``start …``, RoPE applied: ``[batch, heads, tokens, d]``.

        The batch is one prompt, or the newest tokens of several sequences at one position. Layers
        come in order, and all chunks of a prompt go through one before the next.
        """

    def finish_layer(self, layer: int, hidden: Tensor, mixed: Tensor) -> Tensor:
        """The rest of the layer, given attention's output ``[batch, tokens, heads · d]``."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits of the last token: ``[vocabulary]``, or ``[batch, vocabulary]``."""

    def output_projection(self, layer: int) -> Tensor:
        """W_O by query head: ``[kv_heads, group, head_dim, hidden]``."""


class Session:
    """One sequence under one policy: its cache, and the way to go on.

    Attributes:
        cache: what is held.
        logits: of the token after the last one seen.
    """

    def __init__(self, model: Decoder, eviction: Eviction, decoding: DecodeEviction | None) -> None:
        self.model, self.cache = model, eviction.cache
        self.logits: Tensor | None = None
        self._decoding = decoding

    def reserve(self, tokens: int) -> None:
        """Make room for that many more, unless eviction keeps the cache from growing with them."""
        if self._decoding is None:
            self.cache.reserve(tokens)

    def extend(self, ids: list[int]) -> Tensor:
        """Take in more tokens, such as a question or the last token decoded; the next logits."""
        hidden = self.extend_hidden(self.model.embed(ids))
        self.logits = self.model.logits(hidden[:, -1:])
        return self.logits

    def step(self, ids: list[int]) -> Tensor:
        """Take in one token of each sequence, of this one or of a batch; the next logits."""
        self.logits = self.model.logits(self.extend_hidden(self.model.embed(ids).swapaxes(0, 1)))
        return self.logits

    def extend_hidden(self, hidden: Tensor) -> Tensor:
        """As :meth:`extend`, from embeddings to the last layer's output.

        Several sequences at one position, whose caches are stacked, go through as a batch.
        """
        start, tokens = self.cache.seen, hidden.shape[1]
        check_positions(self.model, start + tokens)
        for index, layer in enumerate(self.cache.layers):
            q, k, v = self.model.project(index, hidden, start)
            layer.append(*(x.reshape(-1, tokens, x.shape[-1]) for x in (k, v)))
            heads = q.reshape(-1, tokens, q.shape[-1])
            mixed, weights = attend_cached(heads, layer, observe=self._observes)
            if self._decoding:
                self._decoding.observe(index, layer, weights, self.model)
            mixed = mixed.reshape(*q.shape).swapaxes(1, 2).reshape(len(q), tokens, -1)
            hidden = self.model.finish_layer(index, hidden, mixed)
        self.cache.seen += tokens
        return hidden

    def fork(self) -> Session:
        """Go on from here without harming this session; the prompt's entries are shared.

        Raises:
            ValueError: the session has gone on since its prompt.
        """
        other = copy(self)
        other.cache = self.cache.fork()
        other._decoding = self._decoding.fork() if self._decoding else None
        return other

    @property
    def _observes(self) -> bool:
        return self._decoding is not None and bool(self._decoding.statistics)


def check_positions(model: Decoder, tokens: int) -> None:
    """Refuse a sequence that is longer than the model has positions for."""
    if tokens > model.max_positions:
        raise InputError(
            f"the sequence reaches {tokens} tokens, beyond the model's "
            f"{model.max_positions} positions"
        )
