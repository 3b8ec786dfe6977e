"""RULER's thirteen tasks: their settings, new tokens and scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Callable

from benchmarks.ruler import generators, sources
from benchmarks.ruler.fitting import Prompt, Room

Stream = Callable[[Room, int], Iterator[Prompt]]


def share_found(prediction: str, answers: Sequence[str]) -> float:
    """The share of ``answers`` that occur in the prediction, letter case aside."""
    return sum(answer.lower() in prediction.lower() for answer in answers) / len(answers)


def any_found(prediction: str, answers: Sequence[str]) -> float:
    """1 if any of ``answers`` occurs in the prediction, letter case aside, else 0."""
    return float(share_found(prediction, answers) > 0)


_niah = partial(partial, generators.niah)
STREAMS: dict[str, Stream] = {
    "niah_single_1": _niah(haystack="repeat"),
    "niah_single_2": _niah(haystack="essay"),
    "niah_single_3": _niah(haystack="essay", value="uuids"),
    "niah_multikey_1": _niah(haystack="essay", keys=4),
    "niah_multikey_2": _niah(haystack="needle"),
    "niah_multikey_3": _niah(haystack="needle", key="uuids", value="uuids"),
    "niah_multivalue": _niah(haystack="essay", values=4),
    "niah_multiquery": _niah(haystack="essay", queries=4),
    "vt": generators.vt,
    "cwe": generators.cwe,
    "fwe": generators.fwe,
    "qa_1": partial(generators.qa, questions=sources.squad),
    "qa_2": partial(generators.qa, questions=sources.hotpotqa),
}
NEW_TOKENS = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}


def new_tokens(task: str) -> int:
    return NEW_TOKENS[task.split("_")[0]]


def stream(task: str, length: int, count: Callable[[str], int], seed: int = 42) -> Iterator[Prompt]:
    return STREAMS[task](Room(task, length, new_tokens(task), count), seed)
