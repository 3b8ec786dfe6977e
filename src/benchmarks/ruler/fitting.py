"""As much filler as a length has room for, found as RULER's scripts find it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable

from kvevict.errors import InputError

TRIES = 1000  # draws of one size, of which some may be too long


@dataclass(frozen=True)
class Prompt:
    """An example: what is read, in three parts, and what the answer should contain.

    ``context`` holds the instruction, ``question`` what stands behind the context, and
    ``answer_prefix`` how the answer begins. ``length`` counts the tokens of all and of the answer.
    """

    context: str
    question: str
    answer_prefix: str
    answers: list[str]
    length: int = 0

    @property
    def text(self) -> str:
        return self.context + self.question + self.answer_prefix

    @classmethod
    def fill(
        cls, template: str, answer_prefix: str, context: str, answers: list[str], **fields: Any
    ) -> Prompt:
        """The prompt of a template that holds ``{context}`` once and, around it, ``fields``."""
        before, _, behind = template.partition("{context}")
        return cls(
            before.format(**fields) + context,
            behind.format(**fields),
            answer_prefix.format(**fields),
            answers,
        )


@dataclass(frozen=True)
class Room:
    """The tokens that a prompt and its answer may have together, and how tokens are counted.

    ``taken`` is what a text in front of the prompt takes of them.
    """

    task: str
    length: int
    new_tokens: int
    count: Callable[[str], int]
    taken: int = 0

    def most_units(
        self,
        draw: Callable[[int], Prompt],
        step: int,
        said: Callable[[list[str]], str],
        most: int | None = None,
    ) -> int:
        """The most units of filler, in steps, with which a prompt that is drawn has room.

        Args:
            draw: a prompt with so many units, drawn anew at each call.
            said: the answers as they are counted behind the prompt here, and here alone.
            most: the units there are.
        """
        units, tokens = step, 0
        left = self.length - self.new_tokens - self.taken
        while tokens < left:
            prompt = draw(units)
            tokens = self.count(prompt.text + said(prompt.answers))
            if tokens > left:
                units -= step
                break
            units += step
            if most is not None and units > most:
                return most
        if not units:
            raise InputError(f"{self.length} tokens are too few for an example of {self.task}")
        return units

    def fitting(self, draw: Callable[[int], Prompt], units: int, step: int) -> Prompt:
        """The first prompt drawn that has room; after each that has not, a step less filler."""
        for _ in range(TRIES):
            prompt = self.measured(draw(units))
            if prompt.length <= self.length:
                return prompt
            if units > step:
                units -= step
        raise InputError(f"{self.length} tokens are too few for an example of {self.task}")

    def measured(self, prompt: Prompt) -> Prompt:
        """The prompt with its length."""
        return replace(prompt, length=self.count(prompt.text) + self.new_tokens + self.taken)
