"""From a prompt to its answers under several policies at once."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from benchmarks import Example, Task
from evaluation.prompting import Prompting, PromptTokens
from kvevict.engine import decode_all, decode_together, log_likelihoods, memory, prefill
from kvevict.engine.session import Decoder, Session
from kvevict.errors import InputError
from kvevict.methods import Policy
from kvevict.repetition import Repetition
from kvevict.tensors import Tensor


class Answer(NamedTuple):
    """What one policy said to one example.

    Attributes:
        example: that was asked.
        policy: its number among the policies that the example was asked under.
        text: the answer.
        stats: its statistics.
    """

    example: Example
    policy: int
    text: str
    stats: dict[str, Any]


class Predictor:
    """Answers examples with one model.

    Examples that share a context, one after another, share its compressed cache too where the
    context is compressed before the question is known.

    Args:
        together: decode all policies of an example as one batch.
        batch: answers that are decoded side by side, of any examples; None for as many as memory
            holds.
        nll: also note how unlikely the reference answer is, the mean over its tokens of the
            negative log-likelihood, each token given the true ones before it.
        unpack: decode from the numbers of quantised caches, once their bytes have been counted.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompting: Prompting,
        eos: set[int],
        together: bool = False,
        batch: int | None = 1,
        nll: bool = False,
        unpack: bool = False,
    ) -> None:
        self.decoder, self.prompting, self.eos, self.together = decoder, prompting, eos, together
        self.batch, self.nll, self.unpack = batch, nll, unpack
        self._compressed: tuple[Any, list[Session]] = (None, [])

    def predict(self, task: Task, work: Iterable[tuple[Example, list[Policy]]]) -> Iterator[Answer]:
        """The answers to examples under policies, as they end.

        Raises:
            InputError: as :meth:`Prompting.tokens`.
            FloatingPointError: the model's numbers are not finite.
        """
        if self.batch != 1:
            yield from self._predict_in_batch(task, work)
            return
        for example, policies in work:
            sessions, rows = self._prefill(task, example, policies)
            size = len(rows) if self.together else 1
            for first in range(0, len(rows), size):
                batch = [sessions.pop(0) for _ in range(size)]  # freed before the next grows
                began = time.perf_counter()
                answers = decode_together(batch, *self._limits(task))
                share = (time.perf_counter() - began) / size
                for place, ids in enumerate(answers, first):
                    rows[place]["decoded_together"] = size
                    yield self._answer(task, example, place, ids, rows[place], share)

    def _predict_in_batch(
        self, task: Task, work: Iterable[tuple[Example, list[Policy]]]
    ) -> Iterator[Answer]:
        """As :meth:`predict`: prompts are read one by one, their answers decoded side by side."""
        asked: list[tuple[Example, int, dict[str, Any]]] = []  # in the order of the sessions
        most, latest = 1, []

        def prefilled() -> Iterator[Session]:
            nonlocal latest
            for example, latest in work:
                sessions, rows = self._prefill(task, example, latest)
                asked.extend((example, place, row) for place, row in enumerate(rows))
                while sessions:
                    yield sessions.pop(0)

        def fits(running: list[Session]) -> bool:
            nonlocal most
            most = max(most, len(running))
            if self.batch is not None:
                return len(running) < self.batch
            tokens = max(row["prompt_tokens"] for *_, row in asked)  # as long as any so far
            return memory.fits(self.decoder, latest, tokens, task.max_new_tokens, len(running))

        began = time.perf_counter()
        for number, ids in decode_all(prefilled(), *self._limits(task), fits):
            example, place, row = asked[number]
            row["decoded_together"] = most
            # Of a batch that goes on all the time, none has a time of its own: since the last one.
            now = time.perf_counter()
            yield self._answer(task, example, place, ids, row, now - began)
            began = now

    def _limits(self, task: Task) -> tuple[int, set[int], int]:
        """The most new tokens, those that end an answer, and how many must come before."""
        if task.stop:
            return task.max_new_tokens, self.eos | {self.prompting.last_token(task.stop)}, 1
        return task.max_new_tokens, self.eos, 0

    def _prefill(
        self, task: Task, example: Example, policies: list[Policy]
    ) -> tuple[list[Session], list[dict[str, Any]]]:
        """A session for each policy that has read the whole prompt, and its statistics so far."""
        tokens = self.prompting.tokens(task, example)
        where = f"{task.name}, example {example.id}"
        reused = self._compressed[0] == (tokens.compressed, policies)
        began = time.perf_counter()
        try:
            sessions = self._read(task, example, tokens, policies)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        _wait(sessions[0].logits, where)
        shared = time.perf_counter() - began
        common = {
            "id": example.id,
            "prompt_tokens": tokens.total,
            "uncut_tokens": tokens.uncut,
            "policies": len(policies),
            "full_cache_bytes": self._full_bytes(sessions[0], len(tokens.compressed)),
        }
        if reused:  # nothing but the question was read in this time
            common["context_reused"] = True
        rows = []
        likely = self._likelihood(task, example, tokens, sessions) if self.nll else []
        for session in sessions:
            row = {
                **common,
                "cache_bytes": session.cache.nbytes,
                "cache_entries": session.cache.entries,
                "left_whole": session.cache.entries == self._entries(len(tokens.compressed)),
            }
            if self.unpack:
                session.cache.dequantise()
            began = time.perf_counter()
            if tokens.after:
                _wait(session.extend(tokens.after), where)
            spent = shared + time.perf_counter() - began
            rows.append({**row, "prefill_seconds": round(spent, 4)})
        for row, nll in zip(rows, likely):
            row["nll"] = nll
        return sessions, rows

    def _likelihood(
        self, task: Task, example: Example, tokens: PromptTokens, sessions: list[Session]
    ) -> list[float]:
        """What ``nll`` asks for, of each session, none of which goes on; of no answer nothing."""
        ids = self.prompting.reference(task, example)
        if not ids:
            return []
        forks = [session.fork() for session in sessions]
        for fork in forks if tokens.after else ():
            fork.extend(tokens.after)
        found = log_likelihoods([(fork, ids) for fork in forks])
        return [round(-total / len(ids), 6) for total, _ in found]

    def _answer(
        self,
        task: Task,
        example: Example,
        policy: int,
        ids: list[int],
        row: dict[str, Any],
        seconds: float,
    ) -> Answer:
        row.update(
            new_tokens=len(ids),
            decode_steps=min(len(ids), task.max_new_tokens - 1),
            decode_seconds=round(seconds, 4),
        )
        return Answer(example, policy, self.prompting.tokenizer.decode(ids), row)

    def _read(
        self, task: Task, example: Example, tokens: PromptTokens, policies: list[Policy]
    ) -> list[Session]:
        """Sessions that have read what is compressed."""
        repetition = self.prompting.repetition(task)
        if self.prompting.compress == "context":
            return self._after(tokens.compressed, policies, repetition)
        return prefill(
            self.decoder,
            tokens.compressed,
            policies,
            example.id,
            question_tokens=tokens.question or None,
            repetition=repetition,
        )

    def _after(
        self, ids: list[int], policies: list[Policy], repetition: Repetition
    ) -> list[Session]:
        """Sessions that have read a context and nothing else."""
        if self._compressed[0] != (ids, policies):
            self._compressed = (None, [])  # free the last one first
            # The context itself numbers the draw: every question on it finds the same cache.
            number = zlib.crc32(repr(ids).encode())
            sessions = prefill(self.decoder, ids, policies, number, repetition=repetition)
            self._compressed = ((ids, policies), sessions)
        return [session.fork() for session in self._compressed[1]]

    def _full_bytes(self, session: Session, tokens: int) -> int:
        layer = session.cache.layers[0]
        per_entry = 2 * layer.keys.shape[-1] * layer.keys.element_size()
        return per_entry * self._entries(tokens)

    def _entries(self, tokens: int) -> int:
        """Of a cache that nothing was evicted from."""
        return tokens * self.decoder.kv_heads * self.decoder.layers


def _wait(logits: Tensor, where: str) -> None:
    """Wait until the device has made ``logits``, and look at them.

    Raises:
        FloatingPointError: one is NaN or infinite.
    """
    if not bool(logits.isfinite().all()):
        raise FloatingPointError(
            f"{where}: the model's output is not finite; are its weights whole?"
        )
