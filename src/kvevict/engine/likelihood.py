"""How likely a text is after a prompt that has been evicted from."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

from ..tensors import Tensor, integers, namespace
from .batch import Batch
from .session import Session

CHUNK = 256  # tokens whose logits, as wide as the vocabulary, exist at a time


def log_likelihoods(asked: Sequence[tuple[Session, Sequence[int]]]) -> list[tuple[float, bool]]:
    """As :func:`log_likelihood` of several sessions of one model, each with its continuation.

    Short ones of many sessions, such as all choices under all policies, go side by side, a token of
    each a step; otherwise there are fewer passes in one session after the other.
    """
    if len(asked) <= max(len(ids) for _, ids in asked) - 1:
        return [log_likelihood(*one) for one in asked]
    totals: list[list[float]] = [[] for _ in asked]
    greedy = [True] * len(asked)
    rows, at = list(range(len(asked))), 0
    batch = Batch([session for session, _ in asked], max(len(ids) for _, ids in asked) - 1)
    logits = namespace(batch.sessions[0].logits).stack([one.logits for one in batch.sessions])
    while True:
        found = zip(rows, *_scores(logits, [asked[row][1][at] for row in rows]))
        for row, log_prob, best in found:
            totals[row].append(log_prob)
            greedy[row] &= best
        at += 1
        for place in reversed(range(len(rows))):
            if len(asked[rows[place]][1]) == at:
                batch.leave(place)
                rows.pop(place)
        if not rows:
            return list(zip(map(fsum, totals), greedy))
        logits = batch.step([asked[row][1][at - 1] for row in rows])


def log_likelihood(session: Session, ids: Sequence[int]) -> tuple[float, bool]:
    """The log-probability of a continuation, each token given the true ones before it.

    Args:
        session: prefilled; it goes on growing.
        ids: the continuation, at least one token.

    Returns:
        The sum over the tokens, and whether greedy decoding would produce them.
    """
    model, ids = session.model, list(ids)
    step = 1 if session.evicts else CHUNK  # what is evicted while decoding depends on the step
    scores = [_score(session.logits.unsqueeze(0), ids[:1])]
    for start in range(0, len(ids) - 1, step):
        read = ids[start : min(start + step, len(ids) - 1)]
        hidden = session.extend_hidden(model.embed(read))
        logits = model.logits(hidden.swapaxes(0, 1))  # as many sequences of one token
        scores.append(_score(logits.reshape(len(read), -1), ids[start + 1 :][: len(read)]))
    return fsum(total for total, _ in scores), all(greedy for _, greedy in scores)


def _score(logits: Tensor, ids: list[int]) -> tuple[float, bool]:
    """The same of ``logits[i]`` and ``ids[i]``; ``logits`` is ``[tokens, vocabulary]``."""
    log_probs, greedy = _scores(logits, ids)
    return fsum(log_probs), all(greedy)


def _scores(logits: Tensor, ids: list[int]) -> tuple[list[float], list[bool]]:
    """Of each token its log-probability, and whether it is the most likely one."""
    wanted = integers(ids, namespace(logits).int64, like=logits)
    log_probs = logits.index_select(1, wanted).diagonal() - logits.logsumexp(-1)
    return log_probs.tolist(), (logits.argmax(-1) == wanted).tolist()
