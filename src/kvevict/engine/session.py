"""A model taken apart, and one sequence on it that can go on."""

from __future__ import annotations

from copy import copy
from typing import Protocol, Union

from ..attention.cached import attend_cached
from ..cache import KVCache
from ..errors import InputError
from ..rotary import Tables
from ..tensors import Tensor
from .decode_eviction import DecodeEviction

Start = Union[int, tuple, Tensor]  # a position; one of each sequence: ints, or on the device


class Decoder(Protocol):
    """What a backend offers of a model: a decoder-only transformer, taken apart.

    Attributes:
        layers, kv_heads: how many there are.
        max_positions: tokens of a sequence that the model has positions for.
        products: names of what multiplies by the weights, by the size of an input: "token",
            "batch" or "prompt". They round each in its own way.
    """

    layers: int
    kv_heads: int
    max_positions: int
    products: dict[str, str]

    def embed(self, ids: list[int] | Tensor) -> Tensor:
        """Hidden states ``[1, tokens, hidden]``, ``[batch, …]`` of a tensor ``[batch, tokens]``."""

    def project(self, layer: int, hidden: Tensor, start: Start) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of ``[batch, tokens, hidden]`` with RoPE: ``[batch, heads, tokens, head_dim]``.

        The batch is one prompt, or the newest tokens of several sequences. Layers come in order,
        and all chunks of a prompt go through one before the next.

        Args:
            start: the first token's position, of each sequence where they differ; it may be int64
                ``[batch]`` on the device, where a CUDA graph finds it: see :meth:`reach`.
        """

    def rotary(self, layer: int, start: int, tokens: int) -> Tables:
        """RoPE's tables for ``tokens`` positions, float32 ``[tokens, head_dim]`` each.

        As :meth:`project` applies them; None for a layer without RoPE. See :mod:`kvevict.rotary`.
        """

    def unturned(
        self, layer: int, hidden: Tensor, start: Start
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """As :meth:`project` but before RoPE, and the cosines and sines by which to turn.

        Returns:
            q, k, v, and tables as :func:`kvevict.kernels.turn` takes them; None where nothing is
            left to do.
        """

    def finish_layer(self, layer: int, hidden: Tensor, mixed: Tensor) -> Tensor:
        """The rest of the layer, given attention's output ``[batch, tokens, heads · d]``."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits of the last token: ``[vocabulary]``, or ``[batch, vocabulary]``."""

    def output_projection(self, layer: int) -> Tensor:
        """W_O by query head: ``[kv_heads, group, head_dim, hidden]``."""

    def reach(self, tokens: int) -> int:
        """Be ready for positions on the device, in sequences of so many tokens.

        Returns:
            For how many there is everything. What was recorded at another number is void.
        """
        return self.max_positions


class Session:
    """One sequence under one policy: its cache, and the way to go on.

    Attributes:
        cache: what is held.
        logits: of the token after the last one seen.
    """

    def __init__(
        self, model: Decoder, cache: KVCache, decoding: DecodeEviction | None = None
    ) -> None:
        self.model, self.cache = model, cache
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

    def extend_hidden(self, hidden: Tensor) -> Tensor:
        """As :meth:`extend`, from embeddings ``[1, tokens, hidden]`` to the last layer's output."""
        start, tokens = self.cache.seen, hidden.shape[1]
        check_positions(self.model, start + tokens)
        for index in range(self.model.layers):
            q, k, v = self.model.project(index, hidden, start)
            mixed = self.attend(index, q.squeeze(0), k.squeeze(0), v.squeeze(0))
            mixed = mixed.swapaxes(0, 1).reshape(1, tokens, -1)
            hidden = self.model.finish_layer(index, hidden, mixed)
        self.cache.seen += tokens
        return hidden

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Take new tokens' keys and values into a layer's cache, and let their queries attend.

        Args:
            q, k, v: ``[heads, tokens, head_dim]``.

        Returns:
            ``[query_heads, tokens, head_dim]``.
        """
        held = self.cache.layers[layer]
        held.append(k, v)
        mixed, weights = attend_cached(q, held, observe=self._observes)
        if self._decoding:
            self._decoding.observe(layer, held, weights, self.model)
        return mixed

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
    def evicts(self) -> bool:
        """Whether the cache is evicted from while it grows."""
        return self._decoding is not None

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
