"""Greedy decoding of one session, or of several as one batch."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

from ..cache import KVCache
from ..tensors import Tensor, namespace
from .session import Session


def decode(
    session: Session,
    max_new_tokens: int,
    eos: set[int] = frozenset(),
    min_new_tokens: int = 0,
) -> list[int]:
    """Greedy decoding.

    Args:
        session: prefilled; it goes on growing.
        max_new_tokens: the most tokens to produce.
        eos: tokens that end the answer; they are not part of it.
        min_new_tokens: tokens before which those of ``eos`` are not chosen.

    Returns:
        The new tokens.
    """
    session.reserve(max_new_tokens)
    step = _stepper(session, max_new_tokens)
    ids: list[int] = []
    while len(ids) < max_new_tokens:
        token = _best(session.logits, eos if len(ids) < min_new_tokens else frozenset())
        if token in eos:
            break
        ids.append(token)
        if len(ids) < max_new_tokens:
            step([token])
    return ids


def _best(logits: Tensor, without: set[int]) -> int:
    """The token of the highest logit, those that are not to be chosen left out."""
    if not without:
        return int(logits.argmax(dim=-1))
    candidates = logits.topk(len(without) + 1, dim=-1)[1].tolist()
    return next(token for token in candidates if token not in without)


def _stepper(session: Session, tokens: int) -> Callable[[list[int]], Tensor]:
    """What takes in the next tokens: a CUDA graph where that is possible and worth its making."""
    if namespace(session.logits).__name__ == "torch":
        from . import cuda_graph

        if cuda_graph.applies(session, tokens):
            return cuda_graph.GraphStep(session)
    return session.step


def decode_together(
    sessions: list[Session],
    max_new_tokens: int,
    eos: set[int] = frozenset(),
    min_new_tokens: int = 0,
) -> list[list[int]]:
    """Greedy decoding of several sessions of one prompt as one batch.

    The weights are read once a step for all of them. Sessions that evict while they decode go one
    by one. A batch rounds otherwise than a single sequence does: where two tokens are nearly tied,
    :func:`decode` may choose the other.

    Args:
        sessions: of one length; they are used up, their entries move to the batch.
        max_new_tokens, eos, min_new_tokens: as for :func:`decode`.

    Returns:
        The new tokens of each session.
    """
    alone = {i for i, session in enumerate(sessions) if session._decoding is not None}
    # Neighbours that hold equally much share one product where there is no ragged kernel.
    rows = sorted(set(range(len(sessions))) - alone, key=lambda i: sessions[i].cache.entries)
    if len(rows) < 2:
        return [decode(session, max_new_tokens, eos, min_new_tokens) for session in sessions]
    batch = copy(sessions[rows[0]])
    batch.logits = namespace(batch.logits).stack([sessions[i].logits for i in rows])
    batch.cache = KVCache.stack([sessions[i].cache for i in rows])
    batch.reserve(max_new_tokens)
    step = _stepper(batch, max_new_tokens)
    answers: list[list[int]] = [[] for _ in sessions]
    unfinished = set(rows)
    for produced in range(1, max_new_tokens + 1):
        if produced <= min_new_tokens:
            tokens = [_best(row, eos) for row in batch.logits]
        else:
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
        answers[i] = decode(sessions[i], max_new_tokens, eos, min_new_tokens)
    return answers
