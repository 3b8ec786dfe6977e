"""The five kinds of RULER's examples (Hsieh et al., COLM 2024, arXiv 2404.06654).

Each function gives an endless stream, or one of as many examples as there are questions, and draws
in the order of NVIDIA's scripts: the same seed, length and tokenizer give the same examples. So a
stream is read from its start, and its first examples do not depend on how many are read.
"""

from __future__ import annotations

import math
import random
import string
import uuid
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Callable

import numpy as np

from benchmarks.ruler import sources
from benchmarks.ruler.fitting import Prompt, Room
from kvevict.errors import InputError

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DEPTHS = [round(100 * i / 39) / 100 for i in range(40)]  # where needles in essays may stand

NIAH = (
    "{some} special magic {kind} {are} hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}"
    "\nWhat {are_all} the special magic {kind} for {query} mentioned in the provided text?"
)
NIAH_PREFIX = " The special magic {kind} for {query} mentioned in the provided text {are}"
VT = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text."
    "\n\n{context}"
    "\nQuestion: Find all variables that are assigned the value {query} in the text above."
)
VT_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} variables "
    "are assgined the value {query}, they are: "
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


def niah(
    room: Room,
    seed: int,
    haystack: str,
    key: str = "words",
    value: str = "numbers",
    keys: int = 1,
    values: int = 1,
    queries: int = 1,
) -> Iterator[Prompt]:
    """Needles "One of the special magic … for KEY is: VALUE." and the values of some keys asked.

    Args:
        haystack: ``repeat`` (one line of noise), ``essay``, or ``needle`` (needles with other keys).
        key, value: ``words`` or ``uuids``; ``numbers`` or ``uuids``.
        keys, values, queries: how many keys, values of each, and keys that are asked.
    """
    rng = random.Random(seed)
    keys = max(keys, queries)

    def new(kind: str) -> str:
        if kind == "words":
            return rng.choice(sources.compounds())
        if kind == "numbers":
            return str(rng.randint(1_000_000, 9_999_999))
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))

    def needle(key: str, value_: str) -> str:
        return f"One of the special magic {value} for {key} is: {value_}."

    def in_essay(needles: list[str], words: int) -> str:
        sentences = sources.essays().sentences(words)
        depths = rng.sample(DEPTHS, len(needles))
        cuts = sorted(int(len(sentences) * depth) for depth in depths)
        parts = []
        for start, end, needle in zip([0, *cuts], cuts, needles):
            parts += [" ".join(sentences[start:end]), needle]
        return " ".join([*parts, " ".join(sentences[cuts[-1] :])])

    def in_lines(needles: list[str], count: int) -> str:
        if haystack == "repeat":
            lines = [NOISE] * count
        else:
            lines = [needle(new(key), new(value)) for _ in range(count)]
        for at, needle_ in zip(sorted(rng.sample(range(count), len(needles)), reverse=True), needles):
            lines.insert(at, needle_)
        return "\n".join(lines)

    def draw(units: int) -> Prompt:
        hidden = [(new(key), [new(value) for _ in range(values)]) for _ in range(keys)]
        needles = [needle(name, each) for name, own in hidden for each in own]
        random.Random(seed).shuffle(needles)
        context = (in_essay if haystack == "essay" else in_lines)(needles, units)
        asked = rng.sample(hidden, queries)
        names = [name for name, _ in asked]
        query = f"{', '.join(names[:-1])}, and {names[-1]}" if queries > 1 else names[0]
        words = dict(some="Some", are="are", are_all="are all", kind=value)
        if queries * values == 1:
            words = dict(some="A", are="is", are_all="is", kind=value[:-1])
        answers = [each for _, own in asked for each in own]
        return Prompt.fill(NIAH, NIAH_PREFIX, context, answers, query=query, **words)

    if haystack == "essay":
        step, most = 500, len(sources.essays().words)
    else:
        step, most = (25 if room.length >= 4096 else 5), None
    units = room.most_units(draw, step, " ".join, most)
    while True:
        yield room.fitting(draw, units, step)


def vt(room: Room, seed: int, hops: int = 4) -> Iterator[Prompt]:
    """A chain "VAR A = 12345", "VAR B = VAR A", … in noise; all variables of the value are asked.

    A short example with its answer comes first, its variables named anew for each prompt.
    """
    rng = random.Random(seed)
    numbers = np.random.RandomState(seed)

    def name(letters: int) -> str:
        return "".join(rng.choices(string.ascii_uppercase, k=letters))

    def draw(letters: int, lines: int) -> Prompt:
        names = [name(letters) for _ in range(hops + 1)]
        while len(set(names)) <= hops:
            names = list(dict.fromkeys([*names, name(letters)]))
        value = numbers.randint(10_000, 99_999)
        chain = [f"VAR {names[0]} = {value}"]
        chain += [f"VAR {new} = VAR {old} " for old, new in zip(names, names[1:])]
        parts = [f"{NOISE}\n"] * lines
        if lines <= len(chain):
            parts = [f"{part}." if part.strip() else part for line in parts for part in line.split(".")]
        for i, at in enumerate(sorted(rng.sample(range(len(parts)), len(chain)))):
            parts.insert(at + i, chain[i])
        context = " ".join(parts).replace(". \n", ".\n")
        return Prompt.fill(VT, VT_PREFIX, context, names, query=value, count=hops + 1)

    def said(answers: list[str]) -> str:
        return f" {answers}"

    short = replace(room, length=500)
    brief = partial(draw, 3)
    example = short.fitting(brief, short.most_units(brief, 5, said), 0)
    shown = f"{example.text} {' '.join(example.answers)}\n\n"
    rest = replace(room, taken=room.count(shown))
    full = partial(draw, 5)
    units = rest.most_units(full, 10, said)
    while True:
        prompt = rest.fitting(full, units, 0)
        renamed = shown
        for old in example.answers:
            renamed = renamed.replace(old, name(len(old)))
        yield replace(prompt, context=f" {renamed}\n\n{prompt.context}")


def cwe(room: Room, seed: int, common: int = 10) -> Iterator[Prompt]:
    """A numbered list of words in which ten stand more often than the others, after an example."""
    rng = random.Random(seed)
    words = sources.dictionary()
    random.Random(seed).shuffle(words)
    short = room.length < 4096

    def listed(count: int, often: int, seldom: int) -> tuple[str, list[str]]:
        drawn = rng.sample(words, count)
        entries = drawn[:common] * often + drawn[common:] * seldom
        random.Random(seed).shuffle(entries)
        return _numbered(entries), drawn[:common]

    def draw(count: int) -> Prompt:
        shown = Prompt.fill(CWE, CWE_PREFIX, *(listed(20, 3, 1) if short else listed(40, 10, 3)))
        asked = Prompt.fill(CWE, CWE_PREFIX, *listed(count, *((6, 1) if short else (30, 3))))
        example = f"{shown.text}{_numbered(shown.answers)}\n"
        return replace(asked, context=example + asked.context)

    units = room.most_units(draw, 10, lambda answers: f" {_numbered(answers)}", len(words))
    while True:
        yield room.fitting(draw, units, 10)


def fwe(room: Room, seed: int) -> Iterator[Prompt]:
    """Made-up words, the k-th of them in a share of 1/k² of the text; the three after the first,
    which is dots, are asked.

    The prompt alone fills the length: RULER leaves no room for the answer here.
    """
    rng = random.Random(seed)
    size, step = room.length // 50, room.length // 32
    zeta = math.pi**2 / 6

    def word() -> str:
        return "".join(rng.choices(string.ascii_lowercase, k=6))

    def vocabulary() -> list[str]:
        drawn = {word() for _ in range(size)}
        while len(drawn) < size:
            drawn.add(word())
        words = sorted(drawn)
        random.Random(seed).shuffle(words)
        return ["...", *words[1:]]

    def text(words: list[str], count: int) -> Prompt:
        coded = [w for k, w in enumerate(words, 1) for _ in range(int(count * k**-2.0 / zeta))]
        random.Random(seed).shuffle(coded)
        return Prompt.fill(FWE, FWE_PREFIX, " ".join(coded), words[1:4])

    first, units = vocabulary(), room.length // 6
    while room.count(text(first, units).text) < room.length:
        units += step
    units -= step
    while True:
        words, count = vocabulary(), units
        while room.count(text(words, count).text) > room.length:
            count -= step
        yield room.measured(text(words, count))


def qa(room: Room, seed: int, questions: Callable[[], Iterator[sources.Question]]) -> Iterator[Prompt]:
    """Each question in turn, its paragraphs among others: of its article first, then of any."""
    rng = random.Random(seed)
    asked = list(questions())
    documents = sorted({text for each in asked for text in each.paragraphs + each.related})

    def draw(question: sources.Question, count: int) -> Prompt:
        chosen = question.paragraphs
        missing = count - len(chosen)
        if count >= len(documents):
            chosen = documents
        elif missing > len(question.related):
            chosen = chosen + question.related
            taken = set(chosen)
            others = [text for text in documents if text not in taken]
            chosen = chosen + rng.sample(others, count - len(chosen))
        else:
            chosen = chosen + rng.sample(question.related, missing)
        chosen = list(chosen)
        random.Random(seed).shuffle(chosen)
        context = "\n\n".join(f"Document {i}:\n{text}" for i, text in enumerate(chosen, 1))
        return Prompt.fill(QA, QA_PREFIX, context, question.answers, query=question.text)

    units = room.most_units(
        partial(draw, asked[0]), 10, lambda answers: f" {answers}", len(documents)
    )
    for question in asked:
        yield room.fitting(partial(draw, question), units, 10)


def _numbered(words: list[str]) -> str:
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))
