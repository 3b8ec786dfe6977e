"""How LongBench grades a prediction against one answer (Bai et al., ACL 2024, arXiv 2308.14508).

Every metric is a function ``(prediction, answer) -> float`` in [0, 1]. The rules, quirks included,
are those of the benchmark's own scorer, and so are the packages that it uses: a score compares with
published ones only if they are kept. A missing package, or an answer that a metric cannot read,
raises ``InputError``. An empty prediction needs no package: data are checked with one.
"""

from __future__ import annotations

import logging
import re
import string
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from difflib import SequenceMatcher
from functools import cache
from importlib import import_module
from threading import Thread
from types import ModuleType
from typing import Any

from benchmarks.infinitebench_metrics import CHINESE_PUNCTUATION, english_words, f1
from kvevict.errors import InputError

#: What ``fuzzywuzzy.fuzz.ratio`` can rest on: the first where it is installed, else the second.
CODE_SIMILARITIES = ("levenshtein", "difflib")
NOT_CODE = ("`", "#", "//")


# --- answers in words ----------------------------------------------------------------------------


def qa_f1(prediction: str, answer: str) -> float:
    """F1 of lower-cased words, without ASCII punctuation and articles."""
    return f1(english_words(prediction), english_words(answer))


def qa_f1_zh(prediction: str, answer: str) -> float:
    """F1 of lower-cased ``jieba`` words, without punctuation and spaces."""
    if not prediction:
        return 0.0
    return f1(_chinese_words(prediction), _chinese_words(answer))


def rouge_l(prediction: str, answer: str) -> float:
    """ROUGE-L F of the package ``rouge``; 0 where it fails, as on an empty text.

    It fails on long sentences too, for it recurses once a word. How long they may be must not
    depend on how deep the caller is: a thread has a stack of its own.
    """
    if not prediction:
        return 0.0
    rouge, scores = _rouge(), [0.0]
    thread = Thread(target=_append_rouge_l, args=(rouge, prediction, answer, scores))
    thread.start()
    thread.join()
    return scores[-1]


def rouge_l_zh(prediction: str, answer: str) -> float:
    """ROUGE-L F of ``jieba`` words."""
    if not prediction:
        return 0.0
    return rouge_l(" ".join(_cut(prediction)), " ".join(_cut(answer)))


# --- answers that are right or wrong -------------------------------------------------------------


def classification(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """1 / the number of classes that occur, if the answer is among them, else 0.

    Classes that are only part of the answer do not count. As in the benchmark, each one that is
    taken out hides its successor from the same test.
    """
    found = [name for name in classes if name in prediction]
    for name in found:
        if name in answer and name != answer:
            found.remove(name)
    return 1 / len(found) if answer in found else 0.0


def retrieval(prediction: str, answer: str) -> float:
    """The share of the prediction's numbers that are the one in ``Paragraph 7``."""
    return count(prediction, _paragraph(r"Paragraph (\d+)", answer))


def retrieval_zh(prediction: str, answer: str) -> float:
    """The share of the prediction's numbers that are the one in ``段落7``."""
    return count(prediction, _paragraph(r"段落(\d+)", answer))


def count(prediction: str, answer: str) -> float:
    """The share of the prediction's numbers that are the answer, as text."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(answer) / len(numbers) if numbers else 0.0


# --- code ----------------------------------------------------------------------------------------


def code_similarity(prediction: str, answer: str, backend: str) -> float:
    """Similarity of the answer and the prediction's first line of code, in hundredths.

    The similarity is that of ``fuzzywuzzy.fuzz.ratio``, which is another one where Levenshtein is
    installed than where it is not. Here ``backend``, one of ``CODE_SIMILARITIES``, decides.
    """
    lines = prediction.lstrip("\n").split("\n")
    code = next((line for line in lines if not any(mark in line for mark in NOT_CODE)), "")
    if code == answer:
        return 1.0
    if not code or not answer:
        return 0.0
    if backend == "levenshtein":
        ratio = _package("Levenshtein", "; --code_similarity difflib does without").ratio(
            code, answer
        )
    else:
        ratio = SequenceMatcher(None, code, answer).ratio()
    return round(100 * ratio) / 100


# --- what they share -----------------------------------------------------------------------------


def _chinese_words(text: str) -> list[str]:
    dropped = set(string.punctuation + CHINESE_PUNCTUATION)
    kept = (
        "".join(char for char in word.lower() if char not in dropped and not char.isspace())
        for word in _cut(text)
    )
    return [word for word in kept if word]


def _cut(text: str) -> list[str]:
    return _jieba().lcut(text)


def _append_rouge_l(rouge: Any, prediction: str, answer: str, scores: list[float]) -> None:
    with suppress(Exception):  # as in the benchmark
        scores.append(rouge.get_scores([prediction], [answer], avg=True)["rouge-l"]["f"])


def _paragraph(pattern: str, answer: str) -> str:
    found = re.search(pattern, answer)
    if found is None:
        raise InputError(f"the answer {answer!r} names no paragraph")
    return found[1]


@cache
def _rouge() -> Any:
    return _package("rouge").Rouge(metrics=["rouge-l"], stats=["f"])


@cache
def _jieba() -> ModuleType:
    with warnings.catch_warnings():  # of pkg_resources, and of escapes in its patterns
        warnings.simplefilter("ignore")
        jieba = _package("jieba")
    jieba.setLogLevel(logging.WARNING)
    return jieba


def _package(name: str, otherwise: str = "") -> ModuleType:
    """A package that only some metrics need, imported when the first of them runs."""
    try:
        return import_module(name)
    except ImportError:
        raise InputError(
            f"this score needs the package {name.lower()}, which {sys.executable} lacks{otherwise}"
        ) from None
