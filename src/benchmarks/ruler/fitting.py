"""As much filler as a length has room for, found as RULER's scripts find it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable

from benchmarks.benchmark import Prompt
from kvevict.errors import InputError

TRIES = 100  # draws of one size, of which some may be too long


@dataclass(frozen=True)
class Sample:
    """An example.

    Attributes:
        prompt: what is read.
        answers: what the answer should contain.
        length: tokens of the prompt and of the longest answer together.
    """

    prompt: Prompt
    answers: list[str]
    length: int = 0

    @classmethod
    def fill(
        cls, template: str, answer_prefix: str, context: str, answers: list[str], **fields: Any
    ) -> Sample:
        """The sample of a template that has ``{context}`` once and, around it, ``fields``."""
        before, _, behind = template.partition("{context}")
        head, question = before.format(**fields), behind.format(**fields)
        return cls(Prompt(head + context, question, answer_prefix.format(**fields)), answers)

    def behind(self, text: str) -> Sample:
        """The same with ``text`` in front."""
        return replace(self, prompt=self.prompt._replace(context=text + self.prompt.context))


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
        draw: Callable[[int], Sample],
        step: int,
        said: Callable[[list[str]], str],
        most: int | None = None,
    ) -> int:
        """The most units of filler, in steps, with which a sample that is drawn has room.

        Args:
            draw: a sample with so many units, drawn anew at each call.
            step: units that are added at a time.
            said: the answers as they are counted behind the prompt here, and here alone.
            most: the units there are.

        Raises:
            InputError: there is no room for a single step.
        """
        units, tokens = step, 0
        left = self.length - self.new_tokens - self.taken
        while tokens < left:
            sample = draw(units)
            tokens = self.count(sample.prompt.text + said(sample.answers))
            if tokens > left:
                units -= step
                break
            units += step
            if most is not None and units > most:
                return most
        if left <= 0 or not units:
            raise self.too_few()
        return units

    def fitting(self, draw: Callable[[int], Sample], units: int, step: int) -> Sample:
        """The first sample drawn that has room; after each that has not, a step less filler.

        Raises:
            InputError: none of many has.
        """
        for _ in range(TRIES):
            sample = self.measured(draw(units))
            if sample.length <= self.length:
                return sample
            if units > step:
                units -= step
        raise self.too_few()

    def measured(self, sample: Sample) -> Sample:
        """The sample with its length."""
        tokens = self.count(sample.prompt.text)
        return replace(sample, length=self.taken + tokens + self.new_tokens)

    def too_few(self) -> InputError:
        """That there is no room, as an error to raise."""
        return InputError(f"{self.length} tokens are too few for an example of {self.task}")
