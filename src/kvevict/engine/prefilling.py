"""Prefill: the prompt once, layer by layer, evicting for every policy as each layer is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, get_args

from ..attention import (
    ColumnStatistic,
    QueryMoments,
    Statistic,
    Weights,
    attend,
)
from ..errors import InputError
from ..methods import LayerView, Policy
from ..repetition import Chunk, Repetition
from ..tensors import Tensor, namespace
from .decode_eviction import DecodeEviction
from .moments import query_moments, rotate_ahead
from .prompt_eviction import Eviction
from .repeating import repeated_streams
from .session import Decoder, Session, check_positions

# Tokens that pass through a layer's projections and MLP at a time: their intermediate results,
# many times wider than the hidden state, then never exist for the whole prompt.
CHUNK = 4096
Progress = Callable[[Iterable[int]], Iterable[int]]  # of the layers' numbers, such as a bar


def prefill(
    model: Decoder,
    ids: list[int],
    policies: list[Policy],
    example: int = 0,
    record: bool = False,
    question_tokens: int | None = None,
    repetition: Repetition | None = None,
    progress: Progress = iter,
) -> list[Session]:
    """Run the prompt once, evicting for every policy as each layer is done.

    Attention over the prompt is never affected by eviction, so one pass serves all policies, and
    each gets what a pass of its own would give.

    Args:
        ids: the prompt, at least one token.
        policies: at least one.
        example: counts into the noise of the policies that draw.
        record: note in each layer's cache which positions were kept.
        question_tokens: how many of the last tokens are the question, for the policies whose
            proxies these are.
        repetition: how the model is made to repeat the prompt, such as a loaded model's
            ``repetition``, for the policies that score by it (KVzip).
        progress: what the layers' numbers pass through on their way, to be told how far it is.

    Returns:
        A session for each policy, its next logits ready.

    Raises:
        InputError: no tokens, or more than the model has positions; a question longer than the
            prompt; a policy that needs a ``repetition`` without one, or without positions for it; a
            part of a policy that breaks its contract.
        FloatingPointError: a policy's scores are not finite.
    """
    if not ids:
        raise InputError("the prompt has no tokens")
    prefix, chunks = 0, None
    if repetition:
        prefix, chunks = repetition.prefix(ids), partial(repetition.chunks, ids)
    sessions, hidden = prefill_hidden(
        model,
        model.embed(ids),
        policies,
        example,
        record,
        question_tokens,
        prefix,
        chunks,
        progress,
    )
    logits = model.logits(hidden[:, -1:])
    for session in sessions:
        session.logits = logits
    return sessions


def prefill_hidden(
    model: Decoder,
    hidden: Tensor,
    policies: list[Policy],
    example: int = 0,
    record: bool = False,
    question_tokens: int | None = None,
    prefix_tokens: int = 0,
    chunks: Callable[[int], list[Chunk]] | None = None,
    progress: Progress = iter,
) -> tuple[list[Session], Tensor]:
    """As :func:`prefill`, from embeddings to the last layer's output.

    Args:
        prefix_tokens: how many of the first tokens come before the context.
        chunks: the context in chunks of so many tokens, as they are repeated.
    """
    n = hidden.shape[1]
    check_positions(model, n)
    if question_tokens is not None and not 0 < question_tokens <= n:
        raise InputError(f"a prompt of {n} tokens cannot end in a question of {question_tokens}")
    evictions = [
        Eviction(
            p, n, model.layers, model.kv_heads, example, record, question_tokens, prefix_tokens
        )
        for p in policies
    ]
    wanted = tuple(dict.fromkeys(s for e in evictions for s in e.statistics))
    weights = tuple(s for s in wanted if isinstance(s, get_args(Weights)))
    moments = [s for s in wanted if isinstance(s, QueryMoments)]
    streams = repeated_streams(model, evictions, chunks)
    spans = [slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
    for layer in progress(range(model.layers)):
        q, k, v = _project(model, layer, hidden, spans)
        out, lse, columns = attend(q, k, v, weights)
        finite = lse.isfinite().all() if wanted else None
        found = {s: _by_group(s, columns[s], model.kv_heads) for s in weights}
        found.update({s: query_moments(model, layer, q, s, model.kv_heads) for s in moments})
        del q, lse, columns
        found.update({s: stream.next_layer(layer, k, v) for s, stream in streams.items()})
        scored: dict[object, Tensor] = {}
        for eviction in evictions:
            if eviction.statistics:  # a count of weights would not show it
                eviction.checks.watch(f"the attention weights of layer {layer}", finite)
            eviction.add_layer(_view(model, eviction, layer, k, v, found), scored)
        del k, v, found, scored
        out = out.swapaxes(1, 2)
        parts = [
            model.finish_layer(layer, hidden[:, span], out[:, span].flatten(2)) for span in spans
        ]
        del out
        hidden = parts[0] if len(parts) == 1 else namespace(hidden).cat(parts, dim=1)
        del parts
    for eviction in evictions:
        eviction.finish()
    return [Session(model, e.cache, DecodeEviction.for_policy(e)) for e in evictions], hidden


def _view(
    model: Decoder,
    eviction: Eviction,
    layer: int,
    k: Tensor,
    v: Tensor,
    found: dict[Statistic, Any],
) -> LayerView:
    return LayerView(
        statistics=tuple(found[statistic] for statistic in eviction.statistics),
        keys=k.squeeze(0),
        values=v.squeeze(0),
        w_o=model.output_projection(layer),
        noise_keys=partial(eviction.noise_keys.send, layer),
        prompt=eviction.prompt,
        rotate_ahead=partial(rotate_ahead, model, layer, k.shape[2]),
    )


def _by_group(statistic: Weights, reported: Tensor, kv_heads: int) -> Tensor:
    """What attention reported of one prompt as a scorer wants it (:class:`LayerView`)."""
    reported = reported.squeeze(0)
    if isinstance(statistic, ColumnStatistic) and statistic.per_kv_head:
        return reported
    return reported.reshape(kv_heads, -1, *reported.shape[1:])


def _project(model: Decoder, layer: int, hidden: Tensor, spans: list[slice]) -> Iterable[Tensor]:
    """q, k and v of the whole prompt; a chunk of each is let go as soon as it has been copied."""
    if len(spans) == 1:
        return model.project(layer, hidden, 0)
    # Parts of one product for all three would keep it alive, and with it what they are not of.
    parts = [
        [own.contiguous() for own in model.project(layer, hidden[:, span], span.start)]
        for span in spans
    ]
    chunks = [list(own) for own in zip(*parts)]
    parts.clear()
    ns = namespace(hidden)
    return [ns.cat(chunks.pop(0), dim=2) for _ in range(3)]
