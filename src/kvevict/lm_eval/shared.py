"""Prompts that are prefilled once, whatever is asked of them, and under which policies."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from ..engine import Decoder, Session, prefill
from ..methods import Policy
from ..repetition import Repetition
from .kept import Kept


@dataclass(frozen=True)
class Asked:
    """A prompt and what is asked of it.

    Attributes:
        prompt: its tokens, as :func:`packed` packs them.
        question: how many of the last are the question's; None where nobody knows.
        request: what is asked.
    """

    prompt: bytes
    question: int | None
    request: Hashable


class Prompts:
    """A model's prompts under several policies. What one is asked, all are, of the same prefill.

    Args:
        decoder: the model.
        policies: at least one.
        repetition: as of :func:`kvevict.prefill`.

    Attributes:
        policies, repetition: as given.
        kept: what each policy kept so far.
    """

    def __init__(
        self, decoder: Decoder, policies: Sequence[Policy], repetition: Repetition | None = None
    ) -> None:
        self.policies, self.repetition = list(policies), repetition
        self.kept = [Kept() for _ in policies]
        self._decoder = decoder
        self._known: list[dict[Asked, Any]] = [{} for _ in policies]

    def answers(
        self,
        policy: int,
        asked: Sequence[Asked],
        answer: Callable[[list[tuple[Session, Any]]], list[Any]],
        quiet: bool,
    ) -> Iterator[tuple[int, Any]]:
        """What a policy answers, with the index into ``asked``, as it comes.

        Args:
            policy: its number.
            answer: what requests make of sessions prefilled with their prompt, of each pair.
            quiet: show no progress.
        """
        places: dict[tuple[bytes, int | None], list[int]] = {}
        for index, one in enumerate(asked):
            if one in self._known[policy]:
                yield index, self._known[policy][one]
            else:
                places.setdefault((one.prompt, one.question), []).append(index)
        for prompt, indices in tqdm(places.items(), desc="Prompts", disable=quiet or not places):
            sessions = self._prefill(*prompt)
            pairs = [
                (session.fork(), asked[index].request) for index in indices for session in sessions
            ]
            answered = iter(answer(pairs))
            for index in indices:
                found = list(islice(answered, len(sessions)))
                for known, of_policy in zip(self._known, found):
                    if known is not self._known[policy]:
                        known[asked[index]] = of_policy
                yield index, found[policy]

    def _prefill(self, prompt: bytes, question: int | None) -> list[Session]:
        """A session for each policy."""
        ids = np.frombuffer(prompt, dtype="<i4").tolist()
        # The same prompt draws the same, whatever else is asked in which order.
        example = zlib.crc32(prompt)
        sessions = prefill(
            self._decoder,
            ids,
            self.policies,
            example,
            question_tokens=question,
            repetition=self.repetition,
        )
        for kept, session in zip(self.kept, sessions):
            kept.add(len(ids), question, session)
        return sessions


def packed(ids: Sequence[int]) -> bytes:
    """A prompt's tokens, four bytes each."""
    return np.array(ids, dtype="<i4").tobytes()
