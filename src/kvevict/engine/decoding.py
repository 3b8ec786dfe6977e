"""Greedy decoding of one session, of several as one batch, and of many through one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ..tensors import Tensor
from .batch import Batch
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
        min_new_tokens: so many tokens are produced before an ending one may be chosen.

    Returns:
        The new tokens.
    """
    return decode_together([session], max_new_tokens, eos, min_new_tokens)[0]


def stream(session: Session, max_new_tokens: int, eos: set[int] = frozenset()) -> Iterator[int]:
    """Greedy decoding as :func:`decode`, token by token.

    Whoever stops in between finds a session that has taken in what was yielded, and can go on.
    """
    session.reserve(max_new_tokens)
    batch = Batch([session], steps=max_new_tokens)
    for _ in range(max_new_tokens):
        token = int(session.logits.argmax(dim=-1))
        if token in eos:
            return
        batch.step([token])
        yield token


def decode_together(
    sessions: list[Session],
    max_new_tokens: int,
    eos: set[int] = frozenset(),
    min_new_tokens: int = 0,
) -> list[list[int]]:
    """Greedy decoding of several sessions as one batch, of those that have not ended.

    A batch rounds otherwise than a single sequence does: where two tokens are nearly tied,
    :func:`decode` may choose the other.

    Args:
        sessions: of one model; they go on growing.
        max_new_tokens, eos, min_new_tokens: as for :func:`decode`.

    Returns:
        The new tokens of each session.
    """
    answers = dict(decode_all(sessions, max_new_tokens, eos, min_new_tokens))
    return [answers[number] for number in range(len(sessions))]


def decode_all(
    sessions: Iterable[Session],
    max_new_tokens: int,
    eos: set[int] = frozenset(),
    min_new_tokens: int = 0,
    fits: Callable[[list[Session]], bool] = lambda running: True,
) -> Iterator[tuple[int, list[int]]]:
    """Greedy decoding of any number of sessions through one batch.

    Args:
        sessions: of one model; the next is asked for when there is room for it.
        max_new_tokens, eos, min_new_tokens: as for :func:`decode`.
        fits: whether a further session fits beside those running. Where none runs, one does.

    Yields:
        The number of a session and its new tokens, as answers end.
    """
    waiting, batch = enumerate(sessions), Batch(steps=max_new_tokens)
    answers: list[tuple[int, list[int]]] = []  # of the batch's rows

    def ends(ids: list[int], token: int, logits: Tensor) -> bool:
        """Whether an answer ends here; otherwise it has a token more."""
        if token in eos and len(ids) < min_new_tokens:
            token = _best(logits, eos)
        if token not in eos and len(ids) < max_new_tokens:
            ids.append(token)
        return token in eos or len(ids) == max_new_tokens

    while True:
        while not answers or fits(batch.sessions):
            number, session = next(waiting, (None, None))
            if session is None:
                break
            ids: list[int] = []
            if ends(ids, int(session.logits.argmax(dim=-1)), session.logits):
                yield number, ids
                continue
            session.reserve(max_new_tokens)
            batch.join(session)
            answers.append((number, ids))
        if not answers:
            return
        tokens = batch.step([ids[-1] for _, ids in answers]).argmax(dim=-1).tolist()
        for row in reversed(range(len(answers))):
            if ends(answers[row][1], tokens[row], batch.sessions[row].logits):
                batch.leave(row)
                yield answers.pop(row)


def _best(logits: Tensor, without: set[int]) -> int:
    """The token of the highest logit, those that are not to be chosen left out."""
    candidates = logits.topk(len(without) + 1, dim=-1)[1].tolist()
    return next(token for token in candidates if token not in without)
