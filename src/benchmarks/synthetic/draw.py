"""What generators of synthetic examples draw from, and how they put things in their places."""

from __future__ import annotations

import random
import uuid
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Callable, TypeVar

from benchmarks.synthetic import haystack as hay
from kvevict.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Draw:
    """What a generator draws from: its own random numbers, the split, the depth, the haystack."""

    rng: random.Random
    split: str
    depth: float
    haystack: str

    def new(self, make: Callable[[], str], taken: Iterable[str] = ()) -> str:
        """A text of this split that is not ``taken``."""
        for _ in range(100_000):
            text = make()
            if text not in taken and hay.belongs(text, self.split):
                return text
        raise InputError("an example cannot need more different names than there are")

    def number(self, taken: Iterable[str] = ()) -> str:
        return self.new(lambda: f"{self.rng.randrange(100_000):05d}", taken)

    def word(self, kind: str) -> str:
        return self.rng.choice(hay.words(kind, self.split))

    def thing(self) -> str:
        return f"{self.word('adjective')} {self.word('noun')}"

    def uuid(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def context(self, facts: Sequence[tuple[float, str]]) -> Callable[[int], str]:
        """The haystack by its number of sentences, with ``(depth, sentence)`` facts in it."""
        separator = "\n" if self.haystack == "noise" else " "
        placed = [(depth, fact + separator) for depth, fact in facts]
        start = self.rng.randrange(1_000_000)
        return lambda n: "".join(place(placed, self._chunks(n, start), size=len)).rstrip(" ")

    def _chunks(self, n: int, start: int) -> list[str]:
        if self.haystack == "noise":
            sentences = [hay.NOISE[i % len(hay.NOISE)] for i in range(n)]
            lines = range(0, n, len(hay.NOISE))
            return [" ".join(sentences[i : i + len(hay.NOISE)]) + "\n" for i in lines]
        prose = hay.essays() if self.haystack == "essays" else hay.prose(self.split)
        return [prose[(start + i) % len(prose)] for i in range(n)]


def place(
    placed: Sequence[tuple[float, T]], among: list[T], size: Callable[[T], int] = lambda _: 1
) -> list[T]:
    """``among`` with each ``(depth, item)`` put in where that share of its total ``size`` is over.

    Items of equal depth keep their order.
    """
    edges = [0, *accumulate(map(size, among))]
    result = list(among)
    # From the back, so that the positions in front stay right.
    for depth, item in reversed(sorted(placed, key=lambda pair: pair[0])):
        target = depth * edges[-1]
        at = bisect_left(edges, target)
        if at and target - edges[at - 1] < edges[at] - target:
            at -= 1
        result.insert(at, item)
    return result


def growing(source: Iterator[T]) -> Callable[[int], list[T]]:
    """A function that returns the first n of an endless source, drawing each only once."""
    drawn: list[T] = []

    def first(n: int) -> list[T]:
        drawn.extend(islice(source, max(0, n - len(drawn))))
        return drawn[:n]

    return first
