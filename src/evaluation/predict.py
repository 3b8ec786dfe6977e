"""Predictions of one example under several policies, from one prefill."""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass
from typing import Any

import tasks
from kvevict.errors import InputError
from kvevict.generate import Decoder, Session, decode, prefill
from kvevict.policies import Policy
from kvevict.tensors import Tensor


@dataclass(frozen=True)
class Limits:
    """How long prompts may be.

    Attributes:
        max_length: tokens of a prompt.
        positions: of the model, prompt and answer together.
        truncate: cut longer prompts in the middle; otherwise refuse them.
    """

    max_length: int
    positions: int
    truncate: bool

    def cut(self, ids: list[int], new_tokens: int, where: str) -> list[int]:
        """``ids``, within the limits.

        Raises:
            InputError: too long with truncation off, or no room for the answer.
        """
        limit = min(self.max_length, self.positions - new_tokens)
        if limit < 1:
            raise InputError(f"{where}: {new_tokens} new tokens leave no room for a prompt")
        if len(ids) > limit and not self.truncate:
            raise InputError(
                f"{where}: the prompt has {len(ids)} tokens, more than the {limit} that the model "
                f"takes beside {new_tokens} new ones, and truncation is off"
            )
        return tasks.truncate(ids, limit)


class Predictor:
    """Answers examples with one model.

    Args:
        compress: ``prompt`` evicts from the whole prompt, question included; ``context`` from the
            context alone, before the question is known. Examples that share a context, one after
            another, then share its compressed cache.
    """

    def __init__(
        self, decoder: Decoder, tokenizer: Any, eos: set[int], limits: Limits, compress: str
    ):
        self.decoder, self.tokenizer, self.eos = decoder, tokenizer, eos
        self.limits, self.compress = limits, compress
        self._context: tuple[tuple[int, ...], tuple[Policy, ...], list[Session], float] | None = (
            None
        )

    def predict(
        self, task: tasks.Task, example: tasks.Example, policies: list[Policy], new_tokens: int
    ) -> list[tuple[str, dict[str, Any]]]:
        """The answer and its statistics for each policy."""
        where = f"{task.name}, example {example.id}"
        if self.compress == "context":
            sessions, prompt_tokens, seconds = self._after_context(
                task, example, policies, new_tokens, where
            )
        else:
            text = tasks.normalise(tasks.prompt(task, example))
            ids = self.limits.cut(self.tokenizer.encode(text), new_tokens, where)
            began = time.perf_counter()
            sessions = prefill(self.decoder, ids, policies, example.id)
            finish(sessions[0].logits)
            prompt_tokens, seconds = len(ids), time.perf_counter() - began
        results = []
        full = self._full_bytes(sessions[0], prompt_tokens)
        while sessions:
            session = sessions.pop(0)
            held, entries = session.cache.nbytes, session.cache.entries
            began = time.perf_counter()
            answer = decode(session, new_tokens, self.eos)
            stats = {
                "id": example.id,
                "prompt_tokens": prompt_tokens,
                "new_tokens": len(answer),
                "policies": len(policies),
                "prefill_seconds": round(seconds, 4),
                "decode_seconds": round(time.perf_counter() - began, 4),
                "cache_bytes": held,
                "cache_entries": entries,
                "full_cache_bytes": full,
            }
            results.append((self.tokenizer.decode(answer), stats))
        return results

    def _after_context(
        self,
        task: tasks.Task,
        example: tasks.Example,
        policies: list[Policy],
        new_tokens: int,
        where: str,
    ) -> tuple[list[Session], int, float]:
        context, question = tasks.split_prompt(task, example)
        begin = len(self.tokenizer.encode(""))  # such as <|begin_of_text|>, which the context has
        question_ids = self.tokenizer.encode(tasks.normalise(question))[begin:]
        context_ids = self.limits.cut(
            self.tokenizer.encode(tasks.normalise(context)), new_tokens + len(question_ids), where
        )
        key = (tuple(context_ids), tuple(policies))
        if self._context is None or self._context[:2] != key:
            self._context = None  # free the last one first
            began = time.perf_counter()
            # The context itself numbers the draw: every question on it finds the same cache.
            number = zlib.crc32(repr(context_ids).encode())
            sessions = prefill(self.decoder, context_ids, policies, number)
            finish(sessions[0].logits)
            self._context = (*key, sessions, time.perf_counter() - began)
        sessions, seconds = [s.fork() for s in self._context[2]], self._context[3]
        for session in sessions if question_ids else []:
            session.cache.reserve(len(question_ids) + new_tokens)
            session.extend(question_ids)
        return sessions, len(context_ids) + len(question_ids), seconds

    def _full_bytes(self, session: Session, tokens: int) -> int:
        layer = session.cache.layers[0]
        per_entry = 2 * layer.keys.shape[-1] * layer.keys.element_size()
        return per_entry * tokens * self.decoder.kv_heads * self.decoder.layers


def finish(x: Tensor) -> None:
    """Wait until the device has made ``x``."""
    float(x.max())
