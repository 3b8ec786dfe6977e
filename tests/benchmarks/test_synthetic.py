"""Synthetic examples: their length, depth and schema, and that each answer is the right one."""

from __future__ import annotations

import ast
import json
import re
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import infinitebench
from benchmarks.examples import read_file
from benchmarks.synthetic import estimate_tokens, haystack, make_example
from benchmarks.synthetic.draw import place
from benchmarks.synthetic.generators import GENERATORS, MATH_FIND_KINDS
from kvevict.errors import InputError

# Tokens of the longest unit of filler: a sentence, a pair, a function, an operand.
LONGEST_UNIT = {
    "passkey": 8,
    "number_string": 8,
    "kv_retrieval": 80,
    "kv_confusable": 80,
    "code_run": 50,
    "math_calc": 4,
    "math_find": 8,
}
IN_HAYSTACK = [name for name, (_, default) in GENERATORS.items() if default]
AT_A_DEPTH = [name for name in GENERATORS if name not in ("math_calc", "variable_tracking")]

indices = st.integers(0, 10_000)
splits = st.sampled_from(haystack.SPLITS)


def prompt_of(task: str, row: dict) -> str:
    return infinitebench.TASKS[task].prompt(row).text


@pytest.mark.parametrize("task", GENERATORS)
@settings(deadline=None, max_examples=20)
@given(index=indices, length=st.integers(700, 3000), split=splits)
def test_the_prompt_fills_its_length_to_the_last_unit(task, index, length, split):
    row = make_example(task, index, length, split=split)
    tokens = estimate_tokens(prompt_of(task, row))
    assert length - LONGEST_UNIT.get(task, 130) <= tokens <= length


@pytest.mark.parametrize("task", GENERATORS)
def test_a_tokenizer_is_asked_only_a_few_times(task):
    asked = []

    def count_tokens(text: str) -> int:
        asked.append(text)
        return len(re.findall(r"\w{1,5}|\W", text))

    row = make_example(task, 5, 9000, count_tokens=count_tokens)
    assert len(asked) <= 12
    assert 8800 < count_tokens(prompt_of(task, row)) <= 9000


@pytest.mark.parametrize("task", GENERATORS)
@settings(deadline=None, max_examples=20)
@given(index=indices, split=splits)
def test_rows_are_valid_examples_whose_answer_scores_one(tmp_path_factory, task, index, split):
    row = make_example(task, index, 1000, split=split)
    assert list(row) == ["id", "context", "input", "answer", "options"]
    path = tmp_path_factory.mktemp("rows") / "x.jsonl"
    path.write_text(json.dumps(row) + "\n", "utf-8")
    (example,) = list(read_file(path, infinitebench.TASKS[task]))
    label = infinitebench.TASKS[task].reference(example.fields)["ground_truth"]
    assert infinitebench.TASKS[task].score(f" {label}", {"ground_truth": label}) == 1
    assert infinitebench.TASKS[task].score(" 123456789q", {"ground_truth": label}) == 0


@settings(deadline=None, max_examples=50)
@given(indices, st.sampled_from(["passkey", "number_string"]), st.sampled_from(["noise", "prose"]))
def test_the_key_stands_in_the_haystack_in_one_sentence(index, task, kind):
    row = make_example(task, index, 900, haystack=kind)
    (line,) = re.findall(
        r"The [a-z ]+ is (\d+)\. Remember it\. \1 is the [a-z ]+\.", row["context"]
    )
    assert line == row["answer"]
    if task == "number_string":
        runs = re.findall(r"(\d)\1*", line)
        assert len(line) == 10 and len(runs) <= 5


@settings(deadline=None, max_examples=50)
@given(indices, st.sampled_from(["kv_retrieval", "kv_confusable"]))
def test_the_value_is_that_of_the_key(index, task):
    row = make_example(task, index, 1500)
    pairs = json.loads(row["context"].removeprefix("JSON data:\n"))
    (key,) = re.findall('Key: "(.*?)"', row["input"])
    assert pairs[key] == row["answer"]
    assert len(pairs) == row["context"].count(": "), "no key comes twice"


@settings(deadline=None, max_examples=20)
@given(indices)
def test_confusable_keys_differ_in_one_character(index):
    row = make_example("kv_confusable", index, 3000)
    keys = list(json.loads(row["context"].removeprefix("JSON data:\n")))
    (asked,) = re.findall('Key: "(.*?)"', row["input"])
    distances = [sum(a != b for a, b in zip(asked, key)) for key in keys]
    assert distances.count(1) == 3
    near = [sum(sum(a != b for a, b in zip(x, y)) == 1 for y in keys) for x in keys]
    assert near.count(3) >= len(keys) - 4, "the others come in such families too"


@settings(deadline=None, max_examples=50)
@given(indices, st.sampled_from([None, 1, 3]))
def test_the_code_runs_to_the_answer(index, calls):
    row = make_example("code_run", index, 1500, calls=calls)
    functions: dict = {}
    exec(row["context"].partition(":\n")[2], functions)
    (call,) = re.findall(r"func_\d+\(-?\d+\)", row["input"])
    assert eval(call, functions) == row["answer"]
    if calls:
        bodies = dict(re.findall(r"def (func_\d+)\(x\):\n    return (.*)", row["context"]))
        depth, name = 0, call.partition("(")[0]
        while name:
            depth += 1
            name = (re.findall(r"func_\d+", bodies[name]) or [None])[0]
        assert depth == calls


@settings(deadline=None, max_examples=100)
@given(indices, st.sampled_from(MATH_FIND_KINDS))
def test_the_number_found_is_the_one_asked_for(index, kind):
    row = make_example("math_find", index, 800, kinds=[kind])
    numbers = ast.literal_eval(row["context"])
    assert f"The {kind} number of" in row["input"]
    assert all(0 <= number <= 99 for number in numbers)
    if kind == "median":
        assert row["answer"] == statistics.median(numbers)
        return
    ranked = sorted(set(numbers), reverse="largest" in kind)
    assert row["answer"] == ranked[["second" in kind, 2]["third" in kind]]
    assert numbers.count(row["answer"]) == 1


@settings(deadline=None, max_examples=50)
@given(indices)
def test_the_values_are_those_of_the_expression(index):
    row = make_example("math_calc", index, 600)
    words = row["context"].split()
    values = [eval(" ".join(words[: i + 1])) for i in range(0, len(words), 2)]
    assert row["answer"] == values
    assert all(0 <= value <= 99 for value in values)


@settings(deadline=None, max_examples=50)
@given(indices, st.integers(1, 8))
def test_one_needle_of_several_answers_the_question(index, needles):
    row = make_example("multi_needle", index, 1500, needles=needles)
    (thing,) = re.findall(r"the (\w+ \w+)(?: moved to)?\?$", row["input"])
    facts = re.findall(
        r"The (?:access code of the |number written on the )?(\w+ \w+) (?:is|was moved to) (\w+)\.",
        row["context"],
    )
    words = set(haystack.words("adjective", "eval"))
    facts = [(name, value) for name, value in facts if name.split()[0] in words]
    assert len(facts) == len(dict(facts)) == needles
    assert dict(facts)[thing] == row["answer"]


@settings(deadline=None, max_examples=50)
@given(indices, st.integers(1, 5), st.integers(1, 4), st.floats(0, 1))
def test_the_variable_stands_for_the_answer(index, hops, chains, depth):
    row = make_example("variable_tracking", index, 1500, hops=hops, chains=chains, depth=depth)
    (name,) = re.findall(r"the variable (\w+)\?", row["input"])
    known: dict[str, str] = {}
    statements = re.findall(r"The variable (\w{3}) is (\w+)\.", row["context"])
    for variable, meaning in statements:  # in reading order, so each is known when it is used
        known[variable] = meaning if meaning.isdigit() else known[meaning]
    assert known[name] == row["answer"]
    assert len(statements) == len(known) == chains * (hops + 1)


@pytest.mark.parametrize("task", GENERATORS)
def test_an_example_depends_on_nothing_but_its_own_arguments(task):
    row = make_example(task, 3, 1000, seed=1)
    make_example(task, 2, 1000, seed=1)
    assert make_example(task, 3, 1000, seed=1) == row
    others = [make_example(task, 4, 1000, seed=1), make_example(task, 3, 1000, seed=2)]
    others.append(make_example(task, 3, 1000, seed=1, split="train"))
    assert all(other["context"] != row["context"] for other in others)


@pytest.mark.parametrize("task", [task for task in GENERATORS if task != "math_calc"])
def test_a_longer_example_hides_the_same_thing(task):
    options = {"kinds": ["largest"]} if task == "math_find" else {}
    short, long = (make_example(task, 3, length, **options) for length in (1000, 2000))
    assert (short["input"], short["answer"]) == (long["input"], long["answer"])
    assert len(long["context"]) > len(short["context"])


def share_before(row: dict) -> float:
    """Where the answer stands, as a share of the context."""
    text = row["context"]
    if row["input"].startswith("Please"):
        needle = "def " + re.findall(r"func_\d+", row["input"])[0] + "("
    elif text.startswith("["):
        numbers = ast.literal_eval(text)
        return numbers.index(row["answer"]) / (len(numbers) - 1)
    else:
        needle = str(row["answer"])
    return text.index(needle) / len(text)


@pytest.mark.parametrize("task", AT_A_DEPTH)
@pytest.mark.parametrize("depth", [0, 0.25, 0.8, 1])
def test_the_answer_stands_at_its_depth(task, depth):
    options = {"kinds": ["smallest"]} if task == "math_find" else {}
    row = make_example(task, 7, 8000, depth=depth, **options)
    assert share_before(row) == pytest.approx(depth, abs=0.02)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 200))
def test_uniform_depths_are_even_for_any_number_of_examples(count):
    rows = [make_example("math_find", i, 400, kinds=["largest"]) for i in range(count)]
    shares = [share_before(row) for row in rows]
    for quarter in range(4):
        inside = sum(quarter / 4 <= share < (quarter + 1) / 4 for share in shares)
        assert abs(inside - count / 4) <= 3


def test_random_depths_differ_and_stay_inside():
    rows = [make_example("kv_retrieval", i, 3000, depth="random") for i in range(30)]
    shares = [share_before(row) for row in rows]
    assert min(shares) < 0.3 and max(shares) > 0.7 and len(set(shares)) > 15


def test_the_splits_share_no_sentence_and_no_word():
    train, held_out = ({unit.strip() for unit in haystack.prose(s)} for s in haystack.SPLITS)
    assert not train & held_out
    assert min(sum(map(len, train)), sum(map(len, held_out))) > 50_000, "enough for 12K tokens"
    for kind, text in haystack.WORDS.items():
        halves = [haystack.words(kind, split) for split in haystack.SPLITS]
        assert sorted(halves[0] + halves[1]) == sorted(text.split())
        assert min(map(len, halves)) > 15


@settings(deadline=None, max_examples=30)
@given(indices, indices)
def test_the_splits_share_no_key(first, second):
    for task in ("passkey", "number_string", "needle"):
        train = make_example(task, first, 400, split="train")
        held_out = make_example(task, second, 400, split="eval")
        assert train["answer"] != held_out["answer"]


def test_prose_is_prose():
    for unit in haystack.prose("eval"):
        sentence = unit.strip()
        assert sentence[0].isupper() and sentence[-1] in ".!?" and unit != sentence
        assert "::=" not in sentence and ">>>" not in sentence and "  " not in sentence


def test_noise_is_the_benchmarks_line():
    row = make_example("passkey", 0, 1000, depth=0)
    lines = row["context"].splitlines()
    assert set(lines[1:-1]) == {" ".join(haystack.NOISE)}


@given(st.lists(st.tuples(st.floats(0, 1), st.integers())), st.lists(st.text(max_size=1)))
def test_place_keeps_the_order_of_depths_and_of_the_rest(placed, among):
    result = place(placed, among)
    assert [item for item in result if isinstance(item, str)] == among
    wanted = [item for _, item in sorted(placed, key=lambda pair: pair[0])]
    assert [item for item in result if isinstance(item, int)] == wanted


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("code_debug", {}, "cannot build task 'code_debug'"),
        ("passkey", {"split": "test"}, "unknown split 'test'"),
        ("passkey", {"haystack": "hay"}, "unknown haystack 'hay'"),
        ("kv_retrieval", {"haystack": "prose"}, "has no haystack"),
        ("passkey", {"depth": 1.5}, "depth 1.5"),
        ("passkey", {"depth": "deep"}, "depth 'deep'"),
        ("passkey", {"length": 20}, "at least [0-9]+ tokens; 20 are too few"),
        ("math_find", {"kinds": ["biggest"]}, "unknown kind 'biggest'"),
        ("multi_needle", {"needles": 5000}, "more different names than there are"),
    ],
)
def test_bad_arguments_are_named(task, arguments, message):
    with pytest.raises(InputError, match=message):
        make_example(task, 0, **{"length": 1000, **arguments})
