"""The samples of each task: streams that draw in the order of NVIDIA's scripts.

The same seed, length and tokenizer give the same samples, byte for byte. So a stream is read from
its start, and its first samples do not depend on how many are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Callable

from benchmarks.ruler import sources
from benchmarks.ruler.fitting import Room, Sample
from benchmarks.ruler.generators import common_words, frequent_words, questions, variables
from benchmarks.ruler.needles import Niah

SEED = 42  # of NVIDIA's scripts
NEW_TOKENS = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}
STREAMS: dict[str, Callable[[Room, int], Iterator[Sample]]] = {
    "niah_single_1": Niah("repeat"),
    "niah_single_2": Niah("essay"),
    "niah_single_3": Niah("essay", value="uuids"),
    "niah_multikey_1": Niah("essay", keys=4),
    "niah_multikey_2": Niah("needle"),
    "niah_multikey_3": Niah("needle", key="uuids", value="uuids"),
    "niah_multivalue": Niah("essay", values=4),
    "niah_multiquery": Niah("essay", queries=4),
    "vt": variables,
    "cwe": common_words,
    "fwe": frequent_words,
    "qa_1": partial(questions, read=sources.squad),
    "qa_2": partial(questions, read=sources.hotpotqa),
}


def stream(
    task: str, length: int, count_tokens: Callable[[str], int], seed: int = SEED
) -> Iterator[Sample]:
    """The samples of a task: without end, or one for each question.

    Args:
        task: a key of ``STREAMS``.
        length: tokens that prompt and answer may have together, the answer prefix being part of
            the prompt and a chat template of neither.
        count_tokens: of a text, without what a tokenizer puts in front.
        seed: of all draws.

    Raises:
        InputError: the length is too short.
    """
    return STREAMS[task](Room(task, length, new_tokens(task), count_tokens), seed)


def new_tokens(task: str) -> int:
    """The longest answer of a task."""
    return NEW_TOKENS[task.partition("_")[0]]
