"""What each synthetic task hides, and where: one function a task.

A generator takes a ``Draw`` and returns a builder: the ``context``, ``input`` and ``answer`` for a
number of units of filler (sentences, entries, functions, operands). A builder is pure, and more
units only add filler, so that a length can be searched for.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, Callable

from benchmarks.synthetic.draw import Draw, growing, place
from kvevict.errors import InputError

Builder = Callable[[int], dict[str, Any]]

LARGEST_NUMBER = 99
MATH_FIND_KINDS = (
    "largest",
    "second largest",
    "third largest",
    "smallest",
    "second smallest",
    "third smallest",
    "median",
)
CODE_NEEDLE = ("The access code of the {} is {}.", "What is the access code of the {}?")
NUMBER_NEEDLE = ("The number written on the {} is {}.", "What number is written on the {}?")
PLACE_NEEDLE = ("The {} was moved to {}.", "Where was the {} moved to?")


def passkey(draw: Draw) -> Builder:
    key = draw.number()
    fact = f"The pass key is {key}. Remember it. {key} is the pass key."
    return _question(draw.context([(draw.depth, fact)]), "What is the pass key?", key)


def number_string(draw: Draw) -> Builder:
    """Ten digits: five drawn, then five times one of those so far repeated."""

    def digits() -> str:
        text = f"{draw.rng.randrange(100_000):05d}"
        while len(text) < 10:
            at = draw.rng.randrange(len(text))
            text = text[:at] + text[at] + text[at:]
        return text

    key = draw.new(digits)
    fact = f"The sequence of digits is {key}. Remember it. {key} is the sequence of digits."
    return _question(draw.context([(draw.depth, fact)]), "What is the sequence of digits?", key)


def kv_retrieval(draw: Draw) -> Builder:
    """A JSON object of UUIDs, with the value of one key asked."""
    asked = draw.uuid(), draw.uuid()
    others = growing((draw.uuid(), draw.uuid()) for _ in count())
    return lambda n: _kv_row(asked, others(n), draw.depth)


def kv_confusable(draw: Draw) -> Builder:
    """As kv_retrieval, with keys in families of four that differ in one character."""
    asked = draw.uuid(), draw.uuid()

    def ranked_pairs() -> Iterator[tuple[float, tuple[str, str]]]:
        key = asked[0]
        while True:
            at = draw.rng.choice([i for i, char in enumerate(key) if char != "-"])
            others = sorted(set("0123456789abcdef") - {key[at]})
            for char in draw.rng.sample(others, 3):
                yield draw.rng.random(), (key[:at] + char + key[at + 1 :], draw.uuid())
            key = draw.uuid()
            yield draw.rng.random(), (key, draw.uuid())

    others = growing(ranked_pairs())
    return lambda n: _kv_row(asked, [pair for _, pair in sorted(others(n))], draw.depth)


def code_run(draw: Draw, calls: int | None = None) -> Builder:
    """Functions that call one another, ``calls`` of them (None: 2, 4, 6, 8 or 10) to the answer."""
    names: set[str] = set()

    def name() -> str:
        new = draw.new(lambda: f"func_{draw.rng.randrange(100_000)}", names)
        names.add(new)
        return new

    def function(name: str, callee: str | None) -> tuple[int, str]:
        plus = draw.rng.randint(-12, 17)
        value = f"{callee}(x)" if callee else "x"
        value += f" {'-' if plus < 0 else '+'} {abs(plus)}" if plus else ""
        return plus, f"def {name}(x):\n    return {value}\n\n"

    def fillers() -> Iterator[str]:
        defined: list[str] = []
        while True:
            callee = draw.rng.choice(defined) if defined and draw.rng.random() < 0.8 else None
            defined.append(name())
            yield function(defined[-1], callee)[1]

    chain = [name() for _ in range(calls or draw.rng.choice((2, 4, 6, 8, 10)))]
    functions = [function(*pair) for pair in zip(chain, [*chain[1:], None])]
    depths = [draw.depth] + [draw.rng.random() for _ in chain[1:]]
    placed = list(zip(depths, [code for _, code in functions]))
    argument = draw.rng.randint(-10, 10)
    answer = argument + sum(plus for plus, _ in functions)
    question = f"Please give me the exact number of the return value of {chain[0]}({argument})."
    head = "\nHere is the content of functions_module.py:\n\n"
    others = growing(fillers())
    return _question(lambda n: head + "".join(place(placed, others(n))), question, answer)


def math_find(draw: Draw, kinds: Sequence[str] = MATH_FIND_KINDS) -> Builder:
    """A list of numbers; its median is asked, or an extreme that stands once, at the depth."""
    kind = draw.rng.choice(list(kinds))
    if kind not in MATH_FIND_KINDS:
        known = ", ".join(MATH_FIND_KINDS)
        raise InputError(f"unknown kind {kind!r} of math_find; choose from {known}")
    question = "You should answer with only one number, no other words. "
    question += f"The {kind} number of the list is: "
    if kind == "median":
        low, high = draw.rng.randint(0, 20), draw.rng.randint(79, LARGEST_NUMBER)
        values = growing(draw.rng.randint(low, high) for _ in count())

        def median_row(n: int) -> dict[str, Any]:
            odd = values(n // 2 * 2 + 1)
            return {"context": str(odd), "input": question, "answer": float(statistics.median(odd))}

        return median_row

    # Distances from the end of the scale that is asked for: the answer's is the largest of the top.
    rank = 1 + ("second" in kind) + 2 * ("third" in kind)
    top = sorted(draw.rng.sample(range(21), rank))
    depths = [draw.rng.random() for _ in top[1:]] + [draw.depth]
    rest = growing(draw.rng.randint(top[-1] + 1, LARGEST_NUMBER) for _ in count())

    def value(distance: int) -> int:
        return distance if "smallest" in kind else LARGEST_NUMBER - distance

    def context(n: int) -> str:
        return str([value(distance) for distance in place(list(zip(depths, top)), rest(n))])

    return _question(context, question, value(top[-1]))


def math_calc(draw: Draw) -> Builder:
    """Sums and differences that stay between 0 and 99; the answer begins, as the prompt's worked
    examples do, with the first number."""

    def steps() -> Iterator[tuple[str, int]]:
        total = draw.rng.randint(0, LARGEST_NUMBER)
        yield str(total), total
        while True:
            new = draw.rng.randint(0, LARGEST_NUMBER)
            yield (f" + {new - total}" if new > total else f" - {total - new}"), new
            total = new

    some = growing(steps())

    def row(n: int) -> dict[str, Any]:
        terms, values = zip(*some(n + 1))
        return {"context": "".join(terms), "input": "", "answer": list(values)}

    return row


def needle(draw: Draw) -> Builder:
    """One fact about a thing: an access code, a number or a place."""
    (sentence, question), values = draw.rng.choice(_needle_kinds(draw))
    thing = draw.thing()
    answer = values()
    fact = sentence.format(thing, answer)
    return _question(draw.context([(draw.depth, fact)]), question.format(thing), answer)


def multi_needle(draw: Draw, needles: int = 4) -> Builder:
    """``needles`` facts of one form about different things, with one of them asked."""
    (sentence, question), values = draw.rng.choice(_needle_kinds(draw))
    facts: dict[str, str] = {}
    while len(facts) < needles:
        thing = draw.new(draw.thing, facts)
        facts[thing] = draw.new(values, facts.values())
    depths = [draw.depth] + [draw.rng.random() for _ in range(needles - 1)]
    placed = [(at, sentence.format(*fact)) for at, fact in zip(depths, facts.items())]
    thing, answer = next(iter(facts.items()))
    return _question(draw.context(placed), question.format(thing), answer)


def variable_tracking(draw: Draw, hops: int = 2, chains: int = 3) -> Builder:
    """Chains "X = number", "Y = X", …, in reading order; what the end of one stands for is asked.

    The asked chain starts at the depth and goes on towards the end of the context.
    """
    taken: list[str] = []

    def fresh(make: Callable[[], str]) -> str:
        taken.append(draw.new(make, taken))
        return taken[-1]

    def name() -> str:
        return "".join(draw.rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=3))

    placed, asked = [], None
    for start in [draw.depth] + [draw.rng.random() for _ in range(chains - 1)]:
        number = fresh(draw.number)
        variables = [fresh(name) for _ in range(hops + 1)]
        depths = sorted([start] + [draw.rng.uniform(start, 1) for _ in range(hops)])
        meanings = zip(depths, variables, [number, *variables])
        placed += [(at, f"The variable {left} is {right}.") for at, left, right in meanings]
        asked = asked or (variables[-1], number)
    question = f"What number is the variable {asked[0]}?"
    return _question(draw.context(placed), question, asked[1])


#: Generator and default haystack (None: the task has none) of every task that can be built.
GENERATORS: dict[str, tuple[Callable[..., Builder], str | None]] = {
    "passkey": (passkey, "noise"),
    "number_string": (number_string, "noise"),
    "kv_retrieval": (kv_retrieval, None),
    "code_run": (code_run, None),
    "math_calc": (math_calc, None),
    "math_find": (math_find, None),
    "needle": (needle, "prose"),
    "multi_needle": (multi_needle, "prose"),
    "variable_tracking": (variable_tracking, "prose"),
    "kv_confusable": (kv_confusable, None),
}


def _question(context: Callable[[int], str], question: str, answer: Any) -> Builder:
    return lambda n: {"context": context(n), "input": question, "answer": answer}


def _needle_kinds(draw: Draw) -> list[tuple[tuple[str, str], Callable[[], str]]]:
    def where() -> str:
        return draw.word("place")

    return [(CODE_NEEDLE, draw.number), (NUMBER_NEEDLE, draw.number), (PLACE_NEEDLE, where)]


def _kv_row(asked: tuple[str, str], others: list[tuple[str, str]], depth: float) -> dict[str, Any]:
    pairs = place([(depth, asked)], others)
    question = f'\nKey: "{asked[0]}"\nThe value associated with the specified key is: '
    context = "JSON data:\n" + json.dumps(dict(pairs))
    return {"context": context, "input": question, "answer": asked[1]}
