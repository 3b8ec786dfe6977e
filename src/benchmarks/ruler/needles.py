"""RULER's needles in a haystack: one sentence a value, in noise, essays or other needles."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.ruler import sources
from benchmarks.ruler.fitting import Room, Sample

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DEPTHS = [round(100 * i / 39) / 100 for i in range(40)]  # where in essays a needle may stand
TEMPLATE = (
    "{some} special magic {kind} {are} hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}"
    "\nWhat {are_all} the special magic {kind} for {query} mentioned in the provided text?"
)
ANSWER_PREFIX = " The special magic {kind} for {query} mentioned in the provided text {are}"


@dataclass(frozen=True)
class Niah:
    """A task of this kind; call it for its samples.

    Attributes:
        haystack: ``repeat`` (a line of noise), ``essay`` or ``needle`` (needles with other keys).
        key: ``words`` or ``uuids``.
        value: ``numbers`` or ``uuids``.
        keys: how many keys there are.
        values: of each key.
        queries: keys that are asked, all their values wanted.
    """

    haystack: str
    key: str = "words"
    value: str = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1

    def __call__(self, room: Room, seed: int) -> Iterator[Sample]:
        rng = random.Random(seed)

        def draw(units: int) -> Sample:
            return self._sample(rng, seed, units)

        if self.haystack == "essay":
            step, most = 500, len(sources.essays().words)
        else:
            step, most = (25 if room.length >= 4096 else 5), None
        units = room.most_units(draw, step, " ".join, most)
        while True:
            yield room.fitting(draw, units, step)

    def _sample(self, rng: random.Random, seed: int, units: int) -> Sample:
        hidden = []
        for _ in range(max(self.keys, self.queries)):
            hidden.append(
                (_new(rng, self.key), [_new(rng, self.value) for _ in range(self.values)])
            )
        needles = [self._needle(key, value) for key, values in hidden for value in values]
        random.Random(seed).shuffle(needles)
        hide = self._in_essay if self.haystack == "essay" else self._in_lines
        context = hide(rng, needles, units)
        asked = rng.sample(hidden, self.queries)
        keys = [key for key, _ in asked]
        query = f"{', '.join(keys[:-1])}, and {keys[-1]}" if len(keys) > 1 else keys[0]
        answers = [value for _, values in asked for value in values]
        words = {"some": "Some", "kind": self.value, "are": "are", "are_all": "are all"}
        if len(answers) == 1:
            words = {"some": "A", "kind": self.value[:-1], "are": "is", "are_all": "is"}
        return Sample.fill(TEMPLATE, ANSWER_PREFIX, context, answers, query=query, **words)

    def _needle(self, key: str, value: str) -> str:
        return f"One of the special magic {self.value} for {key} is: {value}."

    def _in_essay(self, rng: random.Random, needles: list[str], words: int) -> str:
        sentences = sources.essays().sentences(words)
        cuts = sorted(int(len(sentences) * depth) for depth in rng.sample(DEPTHS, len(needles)))
        parts = []
        for start, end, needle in zip([0, *cuts], cuts, needles):
            parts += [" ".join(sentences[start:end]), needle]
        return " ".join([*parts, " ".join(sentences[cuts[-1] :])])

    def _in_lines(self, rng: random.Random, needles: list[str], count: int) -> str:
        lines = [NOISE] * count
        if self.haystack == "needle":
            pairs = [(_new(rng, self.key), _new(rng, self.value)) for _ in lines]
            lines = [self._needle(key, value) for key, value in pairs]
        places = sorted(rng.sample(range(count), len(needles)), reverse=True)
        for at, needle in zip(places, needles):
            lines.insert(at, needle)
        return "\n".join(lines)


def _new(rng: random.Random, kind: str) -> str:
    if kind == "words":
        return rng.choice(sources.compounds())
    if kind == "numbers":
        return str(rng.randint(1_000_000, 9_999_999))
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
