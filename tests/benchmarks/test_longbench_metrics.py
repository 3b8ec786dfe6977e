"""LongBench's metrics: each rule and each quirk on a case that one can work out by hand."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from benchmarks import longbench_metrics as metrics
from kvevict.errors import InputError


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        ("The Cat, and a dog!", "cat and dog", 1),
        ("Paris, France", "Paris", 2 / 3),
        ("no no", "no", 2 / 3),
        ("no no", "no no no", 0.8),
        ("well-known", "well known", 0),
        ("“Paris”", "Paris", 0),
        ("the", "the", 0),
        ("", "Paris", 0),
        ("Paris", "", 0),
    ],
)
def test_f1_of_words(prediction, answer, score):
    assert metrics.qa_f1(prediction, answer) == pytest.approx(score)


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        ("北京，上海。", "北京上海", 1),
        ("北京 上海\n", "北京上海", 1),
        ("GPT！", "gpt", 1),
        ("北京上海", "北京", 2 / 3),
        ("《红楼梦》", "红楼梦", 2 / 3),  # the benchmark's list has no 《
        ("北京 大学", "北京大学", 0),  # words are cut before spaces go
        ("。，！", "北京", 0),
        ("", "北京", 0),
    ],
)
def test_f1_of_chinese_words(prediction, answer, score):
    assert metrics.qa_f1_zh(prediction, answer) == pytest.approx(score)


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        ("the cat sat", "the cat ran", 2 / 3),
        ("ran cat the", "the cat ran", 1 / 3),
        ("The cat sat", "the cat sat", 2 / 3),  # letter case counts
        ("go go go", "go", 1),  # words count once
        ("one two. three four", "three four. one two", 1),  # sentence by sentence
        ("one two three four", "three four. one two", 1),
        ("one two three four", "three four one two", 1 / 2),
        ("", "the cat", 0),
        ("...", "the cat", 0),
        (" ", "the cat", 0),
        ("the cat", "", 0),
    ],
)
def test_rouge_l(prediction, answer, score):
    assert metrics.rouge_l(prediction, answer) == pytest.approx(score, abs=1e-7)


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        ("我们讨论了会议", "我们讨论了会议", 1),
        ("我们讨论会议", "我们讨论了会议", 6 / 7),
        ("会议。讨论", "讨论。会议", 1 / 3),  # 。 ends no sentence; it is a word
        ("会议.讨论", "讨论.会议", 1),
        ("", "会议", 0),
        ("。", "会议", 0),
    ],
)
def test_rouge_l_of_chinese_words(prediction, answer, score):
    assert metrics.rouge_l_zh(prediction, answer) == pytest.approx(score, abs=1e-7)


def test_a_sentence_too_long_for_the_package_scores_0_however_deep_the_caller():
    def called_from(depth: int, words: int) -> float:
        if depth:
            return called_from(depth - 1, words)
        text = "word " * words
        return metrics.rouge_l(text, text)

    limit = sys.getrecursionlimit()
    for depth in (0, limit // 3):
        assert called_from(depth, limit - 50) == pytest.approx(1)
        assert called_from(depth, limit) == 0


@pytest.mark.parametrize(
    ("prediction", "answer", "classes", "score"),
    [
        ("Date", "Date", ["Food", "Date"], 1),
        ("Date or Food", "Date", ["Food", "Date"], 1 / 2),
        ("Food", "Date", ["Food", "Date"], 0),
        ("neither", "Date", ["Food", "Date"], 0),
        ("date", "Date", ["Food", "Date"], 0),
        ("", "Date", ["Food", "Date"], 0),
        ("Other location", "Other location", ["location", "Other location"], 1),
        ("Other location", "location", ["location", "Other location"], 1 / 2),
        # Taking out "a" moves "ab" to where the loop has been, so "ab" stays.
        ("abc", "abc", ["a", "ab", "abc"], 1 / 2),
        ("abc", "abc", ["a", "abc", "ab"], 1),
        ("abc x", "abc", ["a", "x", "ab", "abc"], 1 / 2),
    ],
)
def test_classification(prediction, answer, classes, score):
    before = list(classes)
    assert metrics.classification(prediction, answer, classes) == score
    assert classes == before


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        ("Paragraph 3", 1),
        ("3", 1),
        ("Paragraph 3 or 13", 1 / 2),
        ("3 3 4", 2 / 3),
        ("03", 0),
        ("３", 0),  # a digit to Unicode, and not the same text
        ("30", 0),
        ("none", 0),
        ("", 0),
    ],
)
def test_numbers(prediction, score):
    assert metrics.retrieval(prediction, "Paragraph 3") == pytest.approx(score)
    assert metrics.retrieval_zh(prediction, "段落3") == pytest.approx(score)
    assert metrics.count(prediction, "3") == pytest.approx(score)


@pytest.mark.parametrize("metric", [metrics.retrieval, metrics.retrieval_zh])
def test_an_answer_that_names_no_paragraph_is_named(metric):
    with pytest.raises(InputError, match="'the third' names no paragraph"):
        metric("", "the third")


@pytest.mark.parametrize("backend", metrics.CODE_SIMILARITIES)
@pytest.mark.parametrize(
    ("prediction", "line"),
    [
        ("x = 1\ny = 2", "x = 1"),
        ("\n\nx = 1", "x = 1"),
        ("# first\n```python\n// then\nx = 1\ny", "x = 1"),
        ("x = 1  # one\ny = 2", "y = 2"),
        ("\n  \nx = 1", "  "),  # only empty lines at the start go
        ("x\r\ny", "x\r"),
        ("# nothing else", ""),
        ("", ""),
    ],
)
def test_the_line_of_code(prediction, line, backend):
    assert metrics.code_similarity(prediction, line, backend) == 1
    assert (metrics.code_similarity(prediction, "other", backend) > 0) == (set(line) >= {"t"})


@pytest.mark.parametrize(
    ("prediction", "answer", "levenshtein", "difflib"),
    [
        ("ababab", "aaaaab", 0.67, 0.33),
        ("tide", "diet", 0.5, 0.25),
        ("diet", "tide", 0.5, 0.5),
        ("abcd", "bcde", 0.75, 0.75),
        ("ab", "cd", 0, 0),
        ("x", "", 0, 0),
        ("", "x", 0, 0),
        ("a" * 7, "a", 0.25, 0.25),
    ],
)
def test_the_similarity_of_code_is_that_of_its_backend(prediction, answer, levenshtein, difflib):
    assert metrics.code_similarity(prediction, answer, "levenshtein") == levenshtein
    assert metrics.code_similarity(prediction, answer, "difflib") == difflib


@pytest.mark.parametrize("backend", metrics.CODE_SIMILARITIES)
def test_the_similarity_of_code_is_that_of_fuzzywuzzy(backend):
    draw = random.Random(backend)
    pairs = []
    for _ in range(300):
        line = "".join(draw.choices("abcxyz_=.() ", k=draw.randrange(300)))
        cut, end = sorted(draw.choices(range(len(line) + 1), k=2))
        pairs.append((line[:cut] + line[end:] + draw.choice(["", "x = 1", line]), line))
    without = 'sys.modules["Levenshtein"] = None' * (backend == "difflib")
    script = f"""import json, sys; {without}
from fuzzywuzzy.fuzz import ratio
print(json.dumps([ratio(*pair) for pair in json.load(sys.stdin)]))"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, input=json.dumps(pairs), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours = [round(100 * metrics.code_similarity(*pair, backend)) for pair in pairs]
    assert ours == json.loads(done.stdout)
