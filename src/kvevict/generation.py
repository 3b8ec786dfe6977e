"""Answers to many prompts, decoded side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from .backends import LoadedModel
from .engine import Decoder, Session, decode_all, memory, prefill
from .errors import InputError
from .methods import Policy


def generate(
    model: LoadedModel | Decoder,
    prompts: list[list[int]],
    policy: Policy,
    max_new_tokens: int = 128,
    eos: set[int] | None = None,
    batch_size: int | None = None,
    example: int = 0,
) -> list[list[int]]:
    """Greedy answers to prompts, each evicted by ``policy``, decoded side by side.

    Prompts are prefilled one at a time, so that no more than one layer of one prompt is held
    uncompressed. When an answer ends, the next prompt takes its place.

    >>> model = load("smollm2-135m-instruct")
    >>> prompts = [model.tokenizer.encode(text) for text in texts]
    >>> answers = generate(model, prompts, SnapKV(keep_ratio=0.2))
    >>> [model.tokenizer.decode(ids) for ids in answers]

    Args:
        model: what :func:`kvevict.load` returns, or its ``decoder()``.
        prompts: token ids of each; or of one, whose answer is returned by itself.
        policy: such as ``SnapKV(keep_ratio=0.2)``.
        max_new_tokens: the most tokens of an answer.
        eos: tokens that end an answer and are no part of it; by default the loaded model's.
        batch_size: the most answers decoded side by side; by default as many as memory holds.
        example: the first prompt's number, which counts into the noise of the policies that draw;
            each further prompt has the next.

    Returns:
        The new tokens of each prompt. They do not depend on the batch, but where two tokens are
        nearly tied: a batch rounds otherwise than a single sequence does.

    Raises:
        InputError: an argument of another kind, a prompt without tokens, or one that is with its
            answer longer than the model has positions for.
    """
    if isinstance(prompts, list) and prompts and isinstance(prompts[0], int):
        return generate(model, [prompts], policy, max_new_tokens, eos, batch_size, example)[0]
    repetition = None
    if isinstance(model, LoadedModel):
        eos = set(model.eos_ids) if eos is None else eos
        model, repetition = model.decoder(), model.repetition
    _check(model, prompts, policy, max_new_tokens, batch_size)
    waiting = deque(enumerate(prompts, start=example))

    def sessions() -> Iterator[Session]:
        while waiting:
            number, ids = waiting.popleft()
            yield prefill(model, ids, [policy], number, repetition=repetition)[0]

    def fits(running: list[Session]) -> bool:
        if batch_size is not None:
            return len(running) < batch_size
        tokens = len(waiting[0][1]) if waiting else 0
        return memory.fits(model, [policy], tokens, max_new_tokens, len(running))

    answers = dict(decode_all(sessions(), max_new_tokens, eos or set(), fits=fits))
    return [answers[number] for number in range(len(prompts))]


def _check(
    model: Decoder,
    prompts: list[list[int]],
    policy: Policy,
    max_new_tokens: int,
    batch_size: int | None,
) -> None:
    """Refuse what cannot be answered before anything is."""
    if not hasattr(model, "output_projection"):
        raise InputError(f"generate takes a model that load returned, not a {type(model).__name__}")
    if not isinstance(policy, Policy):
        raise InputError(f"generate takes a policy, such as SnapKV(keep_ratio=0.2), not {policy!r}")
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")
    for number, ids in enumerate(prompts):
        if not isinstance(ids, list) or not ids or not all(isinstance(token, int) for token in ids):
            raise InputError(f"prompt {number} is no list of token ids")
        longest = len(ids) + max_new_tokens - 1
        if longest > model.max_positions:
            raise InputError(
                f"prompt {number} has {len(ids)} tokens, which with {max_new_tokens} new ones are "
                f"more than the model's {model.max_positions} positions"
            )
