"""RULER's other four kinds of examples: variables, common words, frequent words, questions."""

from __future__ import annotations

import math
import random
import string
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Callable

import numpy as np

from benchmarks.ruler import sources
from benchmarks.ruler.fitting import Room, Sample
from benchmarks.ruler.needles import NOISE
from kvevict.errors import InputError

VT = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text."
    "\n\n{context}"
    "\nQuestion: Find all variables that are assigned the value {query} in the text above."
)
VT_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} "
    "variables are assgined the value {query}, they are: "
)
CWE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}"
    "\nQuestion: What are the 10 most common words in the above list?"
)
CWE_PREFIX = " Answer: The top 10 words that appear most often in the list are:"
FWE = (
    "Read the following coded text and track the frequency of each coded word. Find the three most "
    "frequently appeared coded words. {context}"
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three "
    "most frequently appeared words in the above coded text?"
)
FWE_PREFIX = (
    " Answer: According to the coded text above, the three most frequently appeared words are:"
)
QA_INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words."
)
QA = (
    QA_INSTRUCTION + "\n\nThe following are given documents.\n\n{context}"
    "\n\n" + QA_INSTRUCTION + "\n\nQuestion: {query}"
)
QA_PREFIX = " Answer:"


def variables(room: Room, seed: int, hops: int = 4) -> Iterator[Sample]:
    """A chain "VAR A = 12345", "VAR B = VAR A", … in noise; all that stand for the value are asked.

    A short example with its answer comes first, its variables named anew in each sample.
    """
    rng = random.Random(seed)
    numbers = np.random.RandomState(seed)

    def draw(letters: int, lines: int) -> Sample:
        names: list[str] = []
        while len(names) <= hops:
            names = list(dict.fromkeys([*names, _letters(rng, string.ascii_uppercase, letters)]))
        value = numbers.randint(10_000, 99_999)
        chain = [f"VAR {names[0]} = {value}"]
        chain += [f"VAR {new} = VAR {old} " for old, new in zip(names, names[1:])]
        parts = [f"{NOISE}\n"] * lines
        if lines <= len(chain):
            sentences = [sentence for line in parts for sentence in line.split(".")]
            parts = [f"{each}." if each.strip() else each for each in sentences]
        places = sorted(rng.sample(range(len(parts)), len(chain)))
        for i, at in enumerate(places):
            parts.insert(at + i, chain[i])
        context = " ".join(parts).replace(". \n", ".\n")
        return Sample.fill(VT, VT_PREFIX, context, names, query=value, count=hops + 1)

    def said(answers: list[str]) -> str:
        return f" {answers}"

    short = replace(room, length=500)
    brief = partial(draw, 3)
    example, _ = _fitted(short, brief, short.most_units(brief, 5, said), 5)
    shown = f"{example.prompt.text} {' '.join(example.answers)}\n\n"
    rest = replace(room, taken=room.count(shown))
    full = partial(draw, 5)
    units = rest.most_units(full, 10, said)
    while True:
        sample, units = _fitted(rest, full, units, 10)
        renamed = shown
        for old in example.answers:
            renamed = renamed.replace(old, _letters(rng, string.ascii_uppercase, len(old)))
        yield sample.behind(f" {renamed}\n\n")


def _fitted(room: Room, draw: Callable[[int], Sample], units: int, step: int) -> tuple[Sample, int]:
    """A sample that has room, with as much filler at each draw, and how much that is.

    Filler may have grown a step too far, with which RULER's own script draws for ever.
    """
    while True:
        try:
            return room.fitting(draw, units, 0), units
        except InputError:
            if units <= step:
                raise
            units -= step


def common_words(room: Room, seed: int) -> Iterator[Sample]:
    """A numbered list of words in which ten stand more often than the others, after an example."""
    rng = random.Random(seed)
    words = sources.dictionary()
    random.Random(seed).shuffle(words)
    short = room.length < 4096

    def listed(count: int, often: int, seldom: int) -> Sample:
        drawn = rng.sample(words, count)
        entries = drawn[:10] * often + drawn[10:] * seldom
        random.Random(seed).shuffle(entries)
        return Sample.fill(CWE, CWE_PREFIX, _numbered(entries), drawn[:10])

    def draw(count: int) -> Sample:
        shown = listed(20, 3, 1) if short else listed(40, 10, 3)
        asked = listed(count, 6, 1) if short else listed(count, 30, 3)
        return asked.behind(f"{shown.prompt.text}{_numbered(shown.answers)}\n")

    units = room.most_units(draw, 10, lambda answers: f" {_numbered(answers)}", len(words))
    while True:
        yield room.fitting(draw, units, 10)


def frequent_words(room: Room, seed: int) -> Iterator[Sample]:
    """Made-up words, the k-th of them a share of 1/k² of the text; the first is dots, and the three
    after it are asked.

    The prompt alone fills the length: RULER leaves no room for the answer here. Where it has no
    room for the words that are asked either, RULER's script never ends.
    """
    rng = random.Random(seed)
    size, step = room.length // 50, room.length // 32
    zeta = math.pi**2 / 6
    least = math.ceil(4**2 * zeta)  # with so many entries the last word that is asked is one
    if size < 4:
        raise room.too_few()

    def vocabulary() -> list[str]:
        drawn = {_letters(rng, string.ascii_lowercase, 6) for _ in range(size)}
        while len(drawn) < size:
            drawn.add(_letters(rng, string.ascii_lowercase, 6))
        words = sorted(drawn)
        random.Random(seed).shuffle(words)
        return ["...", *words[1:]]

    def coded(words: list[str], count: int) -> Sample:
        entries = [w for k, w in enumerate(words, 1) for _ in range(int(count * k**-2.0 / zeta))]
        random.Random(seed).shuffle(entries)
        return Sample.fill(FWE, FWE_PREFIX, " ".join(entries), words[1:4])

    first, units = vocabulary(), room.length // 6
    while room.count(coded(first, units).prompt.text) < room.length:
        units += step
    units -= step
    while True:
        words, count = vocabulary(), units
        while count >= least and room.count(coded(words, count).prompt.text) > room.length:
            count -= step
        if count < least:
            raise room.too_few()
        yield room.measured(coded(words, count))


def questions(
    room: Room, seed: int, read: Callable[[], Iterator[sources.Question]]
) -> Iterator[Sample]:
    """Each question in turn, its paragraphs among others: of its article first, then of any.

    A question whose ten paragraphs have no room is left out; on one, RULER's script never ends.
    """
    rng = random.Random(seed)
    asked = list(read())
    documents = sorted({text for each in asked for text in each.paragraphs + each.related})

    def draw(question: sources.Question, count: int) -> Sample:
        own = question.paragraphs
        if count >= len(documents):
            chosen = list(documents)
        elif count - len(own) > len(question.related):
            own = own + question.related
            taken = set(own)
            others = [text for text in documents if text not in taken]
            chosen = own + rng.sample(others, count - len(own))
        else:
            chosen = own + rng.sample(question.related, count - len(own))
        random.Random(seed).shuffle(chosen)
        context = "\n\n".join(f"Document {i}:\n{text}" for i, text in enumerate(chosen, 1))
        return Sample.fill(QA, QA_PREFIX, context, question.answers, query=question.text)

    first = partial(draw, asked[0])
    units = room.most_units(first, 10, lambda answers: f" {answers}", len(documents))
    for question in asked:
        with suppress(InputError):
            yield room.fitting(partial(draw, question), units, 10)


def _letters(rng: random.Random, alphabet: str, count: int) -> str:
    return "".join(rng.choices(alphabet, k=count))


def _numbered(words: list[str]) -> str:
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))
