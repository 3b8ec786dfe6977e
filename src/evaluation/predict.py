"""From examples to tokens, and from tokens to answers under several policies at once."""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass
from typing import Any

import benchmarks
from kvevict.engine import decode_together, prefill
from kvevict.engine.session import Decoder, Session
from kvevict.errors import InputError
from kvevict.methods import Policy
from kvevict.models.tokenizer import Tokenizer
from kvevict.ops import Tensor


@dataclass(frozen=True)
class Prompts:
    """The tokens that an example becomes.

    Attributes:
        tokenizer: of the model.
        max_length: tokens of a prompt.
        positions: of the model, prompt and answer together.
        truncate: cut longer prompts in the middle; otherwise refuse them.
        compress: ``prompt`` evicts from the whole prompt, question included; ``context`` from the
            context alone, before the question is known.
    """

    tokenizer: Tokenizer
    max_length: int
    positions: int
    truncate: bool
    compress: str

    def room(self, task: benchmarks.Task) -> int:
        """The most tokens that a prompt of ``task`` may have.

        Raises:
            InputError: the answer alone takes all positions.
        """
        room = min(self.max_length, self.positions - task.max_new_tokens)
        if room < 1:
            raise InputError(
                f"{task.name} asks for {task.max_new_tokens} new tokens, which leave no room for "
                f"a prompt in the model's {self.positions} positions"
            )
        return room

    def tokens(
        self, task: benchmarks.Task, example: benchmarks.Example
    ) -> tuple[list[int], list[int], int]:
        """What is prefilled and evicted, the question that follows, and the tokens of both uncut.

        Of context and question, one may be empty.

        Raises:
            InputError: too long with truncation off, or a question without room for a context.
        """
        if self.compress == "context":
            text, question = benchmarks.split_prompt(task, example)
        else:
            text, question = benchmarks.prompt(task, example), ""
        begin = len(self.tokenizer.encode(""))  # such as <|begin_of_text|>: once is enough
        after = self.tokenizer.encode(benchmarks.normalise(question))[begin:]
        ids = self.tokenizer.encode(benchmarks.normalise(text))
        where, room = f"{task.name}, example {example.id}", self.room(task)
        uncut = len(ids) + len(after)
        if len(after) >= room:
            raise InputError(f"{where}: the question alone has {len(after)} tokens, of {room}")
        if uncut > room and not self.truncate:
            raise InputError(
                f"{where}: the prompt has {uncut} tokens where {room} fit, and truncation is off"
            )
        return benchmarks.truncate(ids, room - len(after)), after, uncut


class Predictor:
    """Answers examples with one model.

    Examples that share a context, one after another, share its compressed cache too where the
    context is compressed before the question is known. ``together`` decodes all policies of an
    example as one batch.
    """

    def __init__(
        self, decoder: Decoder, prompts: Prompts, eos: set[int], together: bool = False
    ) -> None:
        self.decoder, self.prompts, self.eos, self.together = decoder, prompts, eos, together
        self._compressed: tuple[Any, list[Session]] = (None, [])

    def predict(
        self, task: benchmarks.Task, example: benchmarks.Example, policies: list[Policy]
    ) -> list[tuple[str, dict[str, Any]]]:
        """The answer and its statistics for each policy.

        Raises:
            InputError: as :meth:`Prompts.tokens`.
            FloatingPointError: the model's numbers are not finite.
        """
        ids, question, uncut = self.prompts.tokens(task, example)
        began = time.perf_counter()
        if self.prompts.compress == "context":
            sessions = self._after(ids, policies)
        else:
            sessions = prefill(self.decoder, ids, policies, example.id)
        _wait(sessions[0].logits, f"{task.name}, example {example.id}")
        shared = time.perf_counter() - began
        common = {
            "id": example.id,
            "prompt_tokens": len(ids) + len(question),
            "uncut_tokens": uncut,
            "policies": len(policies),
            "full_cache_bytes": self._full_bytes(sessions[0], len(ids)),
            "prefill_seconds": shared,
        }
        results = []
        while sessions:  # one by one, each is freed before the next grows
            count = len(sessions) if self.together else 1
            batch, sessions = sessions[:count], sessions[count:]
            results += self._answer(task, batch, question, common)
        return results

    def _answer(
        self,
        task: benchmarks.Task,
        sessions: list[Session],
        question: list[int],
        common: dict[str, Any],
    ) -> list[tuple[str, dict[str, Any]]]:
        """Decode ``sessions`` as one batch; the answer and its statistics for each."""
        rows = []
        for session in sessions:
            row = {
                **common,
                "cache_bytes": session.cache.nbytes,
                "cache_entries": session.cache.entries,
                "decoded_together": len(sessions),
            }
            began = time.perf_counter()
            if question:
                _wait(session.extend(question), f"{task.name}, example {common['id']}")
            spent = common["prefill_seconds"] + time.perf_counter() - began
            rows.append({**row, "prefill_seconds": round(spent, 4)})
        began = time.perf_counter()
        answers = decode_together(sessions, task.max_new_tokens, self.eos)
        share = (time.perf_counter() - began) / len(sessions)
        for row, answer in zip(rows, answers):
            row.update(
                new_tokens=len(answer),
                decode_steps=min(len(answer), task.max_new_tokens - 1),
                decode_seconds=round(share, 4),
            )
        return [(self.prompts.tokenizer.decode(answer), row) for row, answer in zip(rows, answers)]

    def _after(self, ids: list[int], policies: list[Policy]) -> list[Session]:
        """Sessions that have read a context and nothing else."""
        if self._compressed[0] != (ids, policies):
            self._compressed = (None, [])  # free the last one first
            # The context itself numbers the draw: every question on it finds the same cache.
            number = zlib.crc32(repr(ids).encode())
            self._compressed = ((ids, policies), prefill(self.decoder, ids, policies, number))
        return [session.fork() for session in self._compressed[1]]

    def _full_bytes(self, session: Session, tokens: int) -> int:
        layer = session.cache.layers[0]
        per_entry = 2 * layer.keys.shape[-1] * layer.keys.element_size()
        return per_entry * tokens * self.decoder.kv_heads * self.decoder.layers


def _wait(logits: Tensor, where: str) -> None:
    """Wait until the device has made ``logits``, and look at them.

    Raises:
        FloatingPointError: one is NaN or infinite.
    """
    if not bool(logits.isfinite().all()):
        raise FloatingPointError(
            f"{where}: the model's output is not finite; are its weights whole?"
        )
