"""The scoring rules, case by case, and against the benchmark's published predictions."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import infinitebench
from benchmarks import infinitebench_metrics as metrics
from kvevict.errors import InputError

RETRIEVAL_CASES = [
    # task, prediction, label, score
    ("passkey", " 71432.", "71432", 1),
    ("passkey", "71432", ["71432"], 1),
    ("passkey", "the key 7 is 71432", "71432", 0),
    ("passkey", "714321", "71432", 0),
    ("passkey", "٧١٤٣٢ 71432", "71432", 1),  # other scripts' digits are not ASCII digits
    ("passkey", "", "71432", 0),
    ("number_string", "0012 is it", "0012", 1),
    ("number_string", "12", "0012", 0),
    ("kv_retrieval", '"ab-12".', "ab-12", 1),
    ("kv_retrieval", "{key:ab-12}", ["ab-12"], 1),
    ("kv_retrieval", "ab-123", "ab-12", 0),
    ("kv_retrieval", "AB-12", "ab-12", 0),
    ("kv_confusable", "'ab-12'", "ab-12", 1),
    ("longdialogue_qa_eng", "Ace, of course!", ["ACE", "ACE ROTHSTEIN"], 1),
    ("longdialogue_qa_eng", "Rothstein", ["ACE", "ROTHSTEIN"], 0),
    ("longdialogue_qa_eng", "John Smith", ["JOHN SMITH"], 0),  # two words are never one word
    ("needle", " 48213.\nNext", "48213", 1),
    ("needle", "148213", "48213", 0),
    ("needle", "It is New York.", "new york", 1),
    ("needle", "York, New", "new york", 0),
    ("needle", "newyork", "new york", 0),
]
CODE_CASES = [
    ("code_run", " -14.", -14, 1),
    ("code_run", "The return value is: `24`", 24, 1),
    ("code_run", "24 it is", 24, 0),
    ("code_run", "func_3(4) + 11", 11, 1),
    ("code_run", "", 0, 0),
    ("code_run", "1" * 5000, 1, 0),
    ("code_debug", "\nB. name", ["other", "B"], 1),
    ("code_debug", "B: name", ["other", "B"], 1),
    ("code_debug", "B) name", ["other", "B"], 0),
    ("code_debug", "C. name", ["name", "B"], 0),
    ("code_debug", "The answer is: B", ["name", "B"], 1),
    ("code_debug", "The answer is: `name`", ["name", "B"], 1),
    ("code_debug", "The answer is:name", ["name", "B"], 0),  # one character is always skipped
    ("code_debug", "The answer is:  name", ["name", "B"], 1),
    ("code_debug", "The culprit is:\nOption B", ["name", "B"], 1),
    ("code_debug", "answer is: C. Right answer: B", ["name", "B"], 0),  # the first lead decides
    ("code_debug", "answer: B", ["name", "B"], 1),
    ("code_debug", "The answer is:", ["name", "B"], 0),
    ("code_debug", "name", ["name", "B"], 0),
]
CHOICE_CASES = [
    ("  B", 1),
    ("C. Bob", 0),
    ("Absolutely B", 0),  # its first character is an A
    ("", 0),
    (" \n ", 0),
    ("Bob", 1),
    ("bob Bob", 0),
    ("The answer is: B", 1),
    ("The answer is B.", 1),
    ("The answer is Bob", 1),
    ("The answer is C. No, answer is: B", 1),  # "answer is:" goes before "answer is"
    ("the answer is", 0),
    ("the option is D or B", 0),
    ("I say (x) B or C", 1),
    ("I say C or B", 0),
    ("so BC it B", 0),  # "BC" is part of "ABCD" and so decides
    ("nothing here", 0),
]
MATH_CASES = [
    ("math_find", "88.", 88, 1),
    ("math_find", "88.9", 88, 1),
    ("math_find", "87", 88, 0),
    ("math_find", "-88", 88, 1),
    ("math_find", "1 88", 88, 0),
    ("math_find", "48", 48.0, 1),
    ("math_find", "48.5", 48.0, 0),
    ("math_find", "48.5", [48.5], 1),
    ("math_find", "none", 48, 0),
    ("math_find", "9" * 5000, 9, 0),
    ("math_calc", "[1, 4, 8]", [1, 4, 8], 1),
    ("math_calc", "1, 4, 9, 8", [1, 4, 8], 2 / 3),
    ("math_calc", "0, 1, 4, 8", [1, 4, 8], 0),
    ("math_calc", "1", [1, 4], 1 / 2),
    ("math_calc", "-1 4", [1, 4], 1),
    ("math_calc", "9" * 5000, [1, 4], 0),
]


@pytest.mark.parametrize(
    ("name", "prediction", "label", "score"), RETRIEVAL_CASES + CODE_CASES + MATH_CASES
)
def test_rule(name, prediction, label, score):
    found = infinitebench.TASKS[name].score(prediction, {"ground_truth": label})
    assert found == pytest.approx(score)


@pytest.mark.parametrize(("prediction", "score"), CHOICE_CASES)
def test_choice_rule(prediction, score):
    assert metrics.choice(prediction, ["Bob", "B"]) == score


def test_gpt4_is_forgiven_the_first_number():
    task = infinitebench.TASKS["math_calc"]
    assert task.score("values: 1, 4, 8", {"ground_truth": [4, 8]}, "gpt4") == 1
    assert task.score("values: 1, 4, 8", {"ground_truth": [4, 8]}, "gpt-4") == 0
    assert infinitebench.TASKS["passkey"].score("71432", {"ground_truth": "71432"}, "gpt4") == 1


@pytest.mark.parametrize(
    ("prediction", "label", "score"),
    [
        ("The  Cat, sat!", ["a cat sat"], 1),
        ("cat", ["cat sat"], 2 / 3),
        ("cat cat", ["cat sat"], 1 / 2),
        ("dog", ["cat"], 0),
        ("the", ["the"], 0),  # articles alone leave nothing
        ("cat", ["dog", "cat"], 1),
        ("cat", "cat", 1),
        ("don't", ["dont"], 1),
    ],
)
def test_english_f1(prediction, label, score):
    assert metrics.token_f1(prediction, label) == pytest.approx(score)


@pytest.mark.parametrize(
    ("prediction", "label", "score"),
    [
        ("胡一刀。", ["胡一刀"], 1),
        ("「胡 一」", ["胡一刀"], 4 / 5),
        ("《胡一刀》", ["胡一刀"], 6 / 7),  # the benchmark's list has no 《
        ("AB", ["ab"], 1),
        ("。", ["。"], 0),
    ],
)
def test_chinese_f1(prediction, label, score):
    assert metrics.character_f1(prediction, label) == pytest.approx(score)


@given(st.text("ab "), st.text("ab ", min_size=1))
def test_character_f1_is_twice_the_overlap_over_the_sizes(prediction, label):
    said, right = Counter(prediction.replace(" ", "")), Counter(label.replace(" ", ""))
    overlap = sum(min(said[char], right[char]) for char in right)
    wanted = 2 * overlap / (sum(said.values()) + sum(right.values())) if overlap else 0
    assert metrics.character_f1(prediction, [label]) == pytest.approx(wanted)


def test_rouge_lsum_is_per_line_and_takes_the_best_label():
    # Each label line is covered by the union of its longest common subsequences.
    assert metrics.rouge_lsum("a b\nc d", ["c d\na b"]) == pytest.approx(1)
    assert metrics.rouge_lsum("running", ["run"]) == 0  # no stemming
    assert metrics.rouge_lsum("a b x y", ["q", "a b"]) == pytest.approx(2 / 3)
    assert metrics.rouge_lsum("", ["a"]) == 0


few_words = st.lists(st.sampled_from(["a", "b", "c", "D.", "é", "\n"])).map(" ".join)


@pytest.mark.parametrize("name", list(infinitebench.TASKS))
@given(prediction=st.text())
def test_every_prediction_has_a_score_from_0_to_1(name, prediction):
    labels = {"code_debug": ["f", "B"], "longbook_choice_eng": ["f", "B"], "math_calc": [1, 2]}
    label = labels.get(name, 7 if name in ("code_run", "math_find") else ["x"])
    assert 0 <= infinitebench.TASKS[name].score(prediction, {"ground_truth": label}) <= 1


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("passkey", []),
        ("passkey", None),
        ("kv_retrieval", [None]),
        ("code_run", None),
        ("code_run", [{}]),
        ("code_run", True),
        ("code_run", 1.5),
        ("code_run", float("inf")),
        ("code_run", "three"),
        ("math_calc", [1, "two"]),
        ("longbook_qa_eng", []),
        ("longbook_qa_chn", [5]),
        ("longbook_sum_eng", 5),
        ("longbook_choice_eng", "B"),
        ("code_debug", ["name"]),
        ("code_debug", [1, "B"]),
        ("math_find", "eighty"),
        ("math_find", True),
        ("math_calc", 5),
        ("math_calc", []),
    ],
)
def test_a_label_of_the_wrong_kind_is_refused(name, label):
    with pytest.raises(InputError, match="the label"):
        infinitebench.TASKS[name].score("B 88", {"ground_truth": label})


@pytest.mark.parametrize(
    ("name", "prediction", "label"),
    [
        ("math_calc", "1, 3, 2", [[1, 3, 2]]),
        ("math_calc", "1, 3, 2", ["1", "3", "2"]),
        ("math_find", "It is 9.", ["9"]),
        ("math_find", "48.5", [["48.5"]]),
        ("passkey", " 71432", [["71432"]]),
        ("longbook_qa_eng", "the moor", [["a moor", "heath"]]),
        ("code_debug", "B. f", [["f", "B"]]),
    ],
)
def test_labels_nested_deeper_or_numbers_as_texts_are_read(name, prediction, label):
    assert infinitebench.TASKS[name].score(prediction, {"ground_truth": label}) == 1
