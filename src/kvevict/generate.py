"""Prefill with eviction, and greedy decoding, over any integration."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

from .attention import ColumnStatistic, attend
from .cache import KVCache
from .errors import InputError
from .policies.base import LayerView, Policy
from .policies.decoding import DecodeEviction
from .policies.eviction import Eviction
from .session import Decoder, Session, check_positions
from .tensors import Tensor, namespace

# Tokens that pass through a layer's projections and MLP at a time: their intermediate results,
# many times wider than the hidden state, then never exist for the whole prompt.
CHUNK = 4096


def prefill(
    model: Decoder,
    ids: list[int],
    policies: list[Policy],
    example: int = 0,
    record: bool = False,
) -> list[Session]:
    """Run the prompt once, evicting for every policy as each layer is done.

    Attention over the prompt is never affected by eviction, so one pass serves all policies, and
    each gets what a pass of its own would give.

    Args:
        ids: the prompt, at least one token.
        policies: at least one.
        example: counts into the noise of the policies that draw.
        record: note in each layer's cache which positions were kept.

    Returns:
        A session for each policy, its next logits ready.

    Raises:
        InputError: no tokens, or more than the model has positions.
        FloatingPointError: a policy's scores are not finite.
    """
    if not ids:
        raise InputError("the prompt has no tokens")
    sessions, hidden = prefill_hidden(model, model.embed(ids), policies, example, record)
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
) -> tuple[list[Session], Tensor]:
    """As :func:`prefill`, from embeddings to the last layer's output."""
    n = hidden.shape[1]
    check_positions(model, n)
    evictions = [Eviction(p, n, model.layers, model.kv_heads, example, record) for p in policies]
    wanted = tuple(dict.fromkeys(s for e in evictions for s in e.statistics))
    spans = [slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
    for layer in range(model.layers):
        q, k, v = _join([model.project(layer, hidden[:, span], span.start) for span in spans])
        out, lse, columns = attend(q, k, v, wanted)
        finite = lse.isfinite().all() if wanted else None
        del q, lse
        scored: dict[object, Tensor] = {}
        for eviction in evictions:
            if eviction.statistics:  # a count of weights would not show it
                eviction.watch(f"the attention weights of layer {layer}", finite)
            eviction.add_layer(_view(model, eviction, layer, k, v, columns), scored)
        del k, v, columns, scored
        out = out.swapaxes(1, 2)
        parts = [model.complete(layer, hidden[:, span], out[:, span].flatten(2)) for span in spans]
        del out
        hidden = parts[0] if len(parts) == 1 else namespace(hidden).cat(parts, dim=1)
        del parts
    for eviction in evictions:
        eviction.check()
    return [Session(model, e, DecodeEviction.of(e)) for e in evictions], hidden


def _view(
    model: Decoder,
    eviction: Eviction,
    layer: int,
    k: Tensor,
    v: Tensor,
    columns: dict[ColumnStatistic, Tensor],
) -> LayerView:
    heads, n = k.shape[1:3]
    own = [columns[s].squeeze(0) for s in eviction.statistics]
    return LayerView(
        columns=tuple(
            c if s.per_kv_head else c.reshape(heads, -1, n)
            for s, c in zip(eviction.statistics, own)
        ),
        keys=k.squeeze(0),
        values=v.squeeze(0),
        w_o=model.output_projection(layer),
        noise_keys=eviction.noise_keys(layer),
    )


def _join(parts: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """Chunks of q, k and v as one of each; a chunk is let go as soon as it has been copied."""
    if len(parts) == 1:
        return list(parts[0])
    chunks = [list(own) for own in zip(*parts)]
    parts.clear()
    ns = namespace(chunks[0][0])
    return [ns.cat(chunks.pop(0), dim=2) for _ in range(3)]


def decode(session: Session, max_new_tokens: int, eos: set[int] = frozenset()) -> list[int]:
    """Greedy decoding.

    Args:
        session: prefilled; it goes on growing.
        max_new_tokens: the most tokens to produce.
        eos: tokens that end the answer; they are not part of it.

    Returns:
        The new tokens.
    """
    session.reserve(max_new_tokens)
    step = _stepper(session, max_new_tokens)
    ids: list[int] = []
    while len(ids) < max_new_tokens:
        token = int(session.logits.argmax(dim=-1))
        if token in eos:
            break
        ids.append(token)
        if len(ids) < max_new_tokens:
            step([token])
    return ids


def _stepper(session: Session, tokens: int) -> Callable[[list[int]], Tensor]:
    """What takes in the next tokens: a CUDA graph where that is possible and worth its making."""
    if namespace(session.logits).__name__ == "torch":
        from . import graph

        if graph.applies(session, tokens):
            return graph.GraphStep(session)
    return session.step


def decode_together(
    sessions: list[Session], max_new_tokens: int, eos: set[int] = frozenset()
) -> list[list[int]]:
    """Greedy decoding of several sessions of one prompt as one batch.

    The weights are read once a step for all of them. Sessions that evict while they decode go one
    by one. A batch rounds otherwise than a single sequence does: where two tokens are nearly tied,
    :func:`decode` may choose the other.

    Args:
        sessions: of one length; they are used up, their entries move to the batch.
        max_new_tokens, eos: as for :func:`decode`.

    Returns:
        The new tokens of each session.
    """
    alone = {i for i, session in enumerate(sessions) if session._decoding is not None}
    # Neighbours that hold equally much share one product where there is no ragged kernel.
    rows = sorted(set(range(len(sessions))) - alone, key=lambda i: sessions[i].cache.entries)
    if len(rows) < 2:
        return [decode(session, max_new_tokens, eos) for session in sessions]
    batch = copy(sessions[rows[0]])
    batch.logits = namespace(batch.logits).stack([sessions[i].logits for i in rows])
    batch.cache = KVCache.stack([sessions[i].cache for i in rows])
    batch.reserve(max_new_tokens)
    step = _stepper(batch, max_new_tokens)
    answers: list[list[int]] = [[] for _ in sessions]
    unfinished = set(rows)
    for produced in range(1, max_new_tokens + 1):
        tokens = batch.logits.argmax(dim=-1).tolist()
        for i, token in zip(rows, tokens):
            if token in eos:
                unfinished.discard(i)
            elif i in unfinished:
                answers[i].append(token)
        if not unfinished or produced == max_new_tokens:
            break
        step(tokens)
    for i in alone:
        answers[i] = decode(sessions[i], max_new_tokens, eos)
    return answers
