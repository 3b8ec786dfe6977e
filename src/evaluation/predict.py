"""From a prompt to its answers under several policies at once."""

from __future__ import annotations

import time
import zlib
from typing import Any

from benchmarks import Example, Task
from evaluation.prompting import Prompting, PromptTokens
from kvevict.engine import decode_together, prefill
from kvevict.engine.session import Decoder, Session
from kvevict.methods import Policy
from kvevict.tensors import Tensor


class Predictor:
    """Answers examples with one model.

    Examples that share a context, one after another, share its compressed cache too where the
    context is compressed before the question is known. ``together`` decodes all policies of an
    example as one batch.
    """

    def __init__(
        self, decoder: Decoder, prompting: Prompting, eos: set[int], together: bool = False
    ) -> None:
        self.decoder, self.prompting, self.eos, self.together = decoder, prompting, eos, together
        self._compressed: tuple[Any, list[Session]] = (None, [])

    def predict(
        self, task: Task, example: Example, policies: list[Policy]
    ) -> list[tuple[str, dict[str, Any]]]:
        """The answer and its statistics for each policy.

        Raises:
            InputError: as :meth:`Prompting.tokens`.
            FloatingPointError: the model's numbers are not finite.
        """
        tokens = self.prompting.tokens(task, example)
        reused = self._compressed[0] == (tokens.compressed, policies)
        began = time.perf_counter()
        if self.prompting.compress == "context":
            sessions = self._after(tokens.compressed, policies)
        else:
            sessions = prefill(
                self.decoder,
                tokens.compressed,
                policies,
                example.id,
                question_tokens=tokens.question or None,
            )
        _wait(sessions[0].logits, f"{task.name}, example {example.id}")
        shared = time.perf_counter() - began
        common = {
            "id": example.id,
            "prompt_tokens": tokens.total,
            "uncut_tokens": tokens.uncut,
            "policies": len(policies),
            "full_cache_bytes": self._full_bytes(sessions[0], len(tokens.compressed)),
            "prefill_seconds": shared,
        }
        if reused:  # nothing but the question was read in this time
            common["context_reused"] = True
        results = []
        while sessions:  # one by one, each is freed before the next grows
            count = len(sessions) if self.together else 1
            batch, sessions = sessions[:count], sessions[count:]
            results += self._answer(task, batch, tokens, common)
        return results

    def _answer(
        self, task: Task, sessions: list[Session], tokens: PromptTokens, common: dict[str, Any]
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
            if tokens.after:
                _wait(session.extend(tokens.after), f"{task.name}, example {common['id']}")
            spent = common["prefill_seconds"] + time.perf_counter() - began
            rows.append({**row, "prefill_seconds": round(spent, 4)})
        began = time.perf_counter()
        ends, least = self.eos, 0
        if task.stop:
            ends, least = self.eos | {self.prompting.last_token(task.stop)}, 1
        answers = decode_together(sessions, task.max_new_tokens, ends, least)
        share = (time.perf_counter() - began) / len(sessions)
        for row, answer in zip(rows, answers):
            row.update(
                new_tokens=len(answer),
                decode_steps=min(len(answer), task.max_new_tokens - 1),
                decode_seconds=round(share, 4),
            )
        decode = self.prompting.tokenizer.decode
        return [(decode(answer), row) for row, answer in zip(rows, answers)]

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
