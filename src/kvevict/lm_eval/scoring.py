"""What the harness asks of a prompt that has been evicted from: a text, up to what ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..engine import Session


def generate(
    session: Session,
    max_new_tokens: int,
    eos: Sequence[int],
    until: Sequence[str],
    decode: Callable[[list[int]], str],
) -> str:
    """Greedy decoding up to a text.

    Args:
        session: prefilled; it goes on growing.
        max_new_tokens: the most tokens to produce.
        eos: tokens that end the answer.
        until: texts that end it, not empty; they are not part of it.
        decode: tokens to text.

    Returns:
        The answer's text.
    """
    session.reserve(max_new_tokens)
    ids: list[int] = []
    text, logits = "", session.logits
    while len(ids) < max_new_tokens:
        token = int(logits.argmax(-1))
        if token in eos:
            break
        ids.append(token)
        text = decode(ids)
        ends = [text.find(stop) for stop in until if stop in text]
        if ends:
            return text[: min(ends)]
        logits = session.extend([token])
    return text
