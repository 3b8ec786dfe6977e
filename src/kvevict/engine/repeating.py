"""A second stream of tokens through the layers of a prefill: a prompt's chunks, repeated.

Every layer takes the prompt and then, one after the other, all repeated chunks: each attends to
the prompt's keys and values of that layer and to itself. So the prompt's layer may be evicted from
and let go before the next, and of the chunks nothing is kept but their hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..attention import RepeatedChunks, attend_behind
from ..attention.peaks import peak_weights
from ..methods import Policy
from ..repetition import Chunk, Repetition
from ..tensors import Tensor, namespace
from .prompt_eviction import Eviction
from .session import Decoder


class RepeatedStream:
    """The repeated chunks of one prompt.

    Args:
        chunks: all of them.
        n: tokens of the prompt.
        sinks: first entries that repeated tokens attend to beside their chunk's own.
    """

    def __init__(self, model: Decoder, chunks: list[Chunk], n: int, sinks: int) -> None:
        self.model, self.chunks, self.n, self.sinks = model, chunks, n, sinks
        self._hidden = [model.embed(chunk.ids) for chunk in chunks]

    def next_layer(self, layer: int, k: Tensor, v: Tensor) -> Tensor:
        """Take all chunks through a layer; the weights that their tokens gave to the prompt's.

        Args:
            k, v: the prompt's, ``[1, kv_heads, tokens, head_dim]``.

        Returns:
            The largest of each entry, float32 ``[kv_heads, tokens]``; 0 before the context.
        """
        peaks = k.new_zeros((k.shape[1], self.n)).float()
        for number, chunk in enumerate(self.chunks):
            hidden = self._hidden[number]
            q, own_k, own_v = self.model.project(layer, hidden, self.n)
            peaks[:, chunk.start : chunk.stop] = self._peaks(q, k, own_k, chunk)
            if layer < self.model.layers - 1:
                mixed = attend_behind(q, k, v, own_k, own_v).swapaxes(1, 2).flatten(2)
                self._hidden[number] = self.model.finish_layer(layer, hidden, mixed)
        return peaks

    def _peaks(self, q: Tensor, k: Tensor, own: Tensor, chunk: Chunk) -> Tensor:
        sinks = min(self.sinks, chunk.start)
        parts = [k[:, :, :sinks], k[:, :, chunk.start : chunk.stop]]
        keys = namespace(k).cat(parts, dim=2) if sinks else parts[1]
        return peak_weights(q, keys, own)[:, sinks:]


def repeated_streams(
    model: Decoder,
    evictions: Iterable[Eviction],
    chunks: Callable[[int], list[Chunk]] | None,
) -> dict[RepeatedChunks, RepeatedStream]:
    """The streams that evictions ask for.

    Args:
        chunks: the context in chunks of so many tokens; None where nobody knows how to repeat it.

    Raises:
        InputError: they are asked for and not known, or the prompt leaves no positions for them.
    """
    streams: dict[RepeatedChunks, RepeatedStream] = {}
    for eviction in evictions:
        for statistic in eviction.statistics:
            if isinstance(statistic, RepeatedChunks) and statistic not in streams:
                streams[statistic] = _stream(model, eviction, statistic, chunks)
    return streams


def longest_prompt(policies: Iterable[Policy], repetition: Repetition, positions: int) -> int:
    """The most tokens of a prompt that leave positions for what policies have repeated behind it.

    All ``positions`` where none of them has anything repeated.
    """
    longest = positions
    for policy in policies:
        if policy.scorer.prompt_only and policy.entries(positions) < positions:
            for statistic in policy.scorer.statistics(policy.shape(positions)):
                if isinstance(statistic, RepeatedChunks):
                    longest = min(longest, repetition.longest_prompt(statistic.size, positions))
    return longest


def _stream(
    model: Decoder,
    eviction: Eviction,
    statistic: RepeatedChunks,
    chunks: Callable[[int], list[Chunk]] | None,
) -> RepeatedStream:
    if chunks is None:
        raise eviction.checks.refuse(
            "the model has to repeat the prompt, and how to ask it for that is not known here: "
            "prefill takes a repetition, and Document and generate that of a model from load"
        )
    n, own = eviction.n, chunks(statistic.size)
    longest = n + max((len(chunk.ids) for chunk in own), default=0)
    if longest > model.max_positions:
        raise eviction.checks.refuse(
            f"a prompt of {n} tokens and its longest chunk, repeated behind it, reach {longest} of "
            f"the model's {model.max_positions} positions: shorten it, or set a smaller chunk_size"
        )
    sinks = max(statistic.n_sink, eviction.prompt.prefix_tokens)
    return RepeatedStream(model, own, n, sinks)
