"""Reading examples and predictions, truncating, normalising."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import benchmarks
from benchmarks import infinitebench
from benchmarks.examples import read_examples, read_file
from benchmarks.grading import grade, read_predictions
from evaluation import prompting
from kvevict.errors import InputError

GOOD = {"context": "c", "input": "i", "answer": "1"}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_ids_are_line_numbers_and_content_is_context(tmp_path):
    renamed = {"content": "d", "input": "i", "answer": ["1"], "id": 99}
    path = write(tmp_path / "x.jsonl", GOOD, renamed)
    examples = list(read_file(path, infinitebench.TASKS["passkey"]))
    assert [example.id for example in examples] == [0, 1]
    assert examples[1].fields["context"] == "d"


@pytest.mark.parametrize("context", ["", "\ud800 lone", "mixed 混合 العربية 🙂", "\r\n\x0b\u2028"])
def test_odd_contexts_are_read_as_they_are(tmp_path, context):
    path = write(tmp_path / "x.jsonl", {**GOOD, "context": context})
    (example,) = list(read_file(path, infinitebench.TASKS["passkey"]))
    assert example.fields["context"] == context
    assert context in infinitebench.TASKS["passkey"].prompt(example.fields).text


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n")
    assert len(list(read_file(path, infinitebench.TASKS["passkey"]))) == 1


CHOICE = {**GOOD, "options": ["a", "b", "c", "d"], "answer": ["b"]}


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("passkey", b'{"context": "c", ', "malformed JSON"),
        ("passkey", b'{"a": 1}{"b": 2}', "malformed JSON"),
        ("passkey", b"[" * 100_000, "malformed JSON"),
        ("passkey", b'{"context": "\xff"}', "not UTF-8"),
        ("passkey", b"[1]", "not a JSON object"),
        ("passkey", b'{"input": "i", "answer": "1"}', 'no "context"'),
        ("passkey", b'{"context": "c", "input": "i"}', 'no "answer"'),
        ("passkey", b'{"context": "c", "answer": "1"}', 'no "input"'),
        ("passkey", b'{"context": 5, "input": "i", "answer": "1"}', '"context" that is not a text'),
        ("math_find", json.dumps(GOOD).encode(), "does not say what math_find asks for"),
        ("code_run", json.dumps(GOOD).encode(), "does not say what code_run asks for"),
        ("code_debug", json.dumps(GOOD).encode(), 'no "options"'),
        ("code_debug", json.dumps({**CHOICE, "options": ["a"]}).encode(), 'no list of 4 "options"'),
        ("code_debug", json.dumps({**CHOICE, "options": [1] * 4}).encode(), "not texts"),
        ("code_debug", json.dumps({**CHOICE, "answer": "e"}).encode(), 'none of its "options"'),
        ("code_debug", json.dumps({**CHOICE, "answer": []}).encode(), 'none of its "options"'),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path, name, line, message):
    good = {**CHOICE, "input": "The largest number of func_1(2)"}
    if name in ("math_find", "code_run"):
        good["answer"] = 7
    path = write(tmp_path / "x.jsonl", good)
    with open(path, "ab") as file:
        file.write(line + b"\n")
    with pytest.raises(InputError) as raised:
        list(read_file(path, infinitebench.TASKS[name]))
    assert str(raised.value).startswith(f"{path}, line 2: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_field_that_the_prompt_does_not_use_may_be_missing(tmp_path):
    path = write(tmp_path / "x.jsonl", {"context": "c", "answer": ["s"]})
    assert len(list(read_file(path, infinitebench.TASKS["longbook_sum_eng"]))) == 1


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no .*passkey\.jsonl; scripts/download_data"):
        list(read_examples(benchmarks.get(), infinitebench.TASKS["passkey"], tmp_path / "nowhere"))


def test_predictions_under_either_name(tmp_path):
    ours = {"id": 0, "prediction": "p", "ground_truth": "g"}
    theirs = {"id": 1, "pred": "q", "label": ["h"], "truncated": True}
    path = write(tmp_path / "p.jsonl", ours, theirs)
    found, half_written = read_predictions(path)
    assert [(row.line, row.text, row.reference["ground_truth"]) for row in found] == [
        (1, "p", "g"),
        (2, "q", ["h"]),
    ]
    assert not half_written


@given(st.data())
def test_a_file_cut_anywhere_loses_at_most_its_last_line(tmp_path_factory, data):
    texts = data.draw(st.lists(st.text(), min_size=1, max_size=4))
    rows = [{"id": i, "prediction": text, "ground_truth": "g"} for i, text in enumerate(texts)]
    ascii_only = data.draw(st.booleans())
    lines = [json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows]
    whole = "".join(lines).encode()
    size = data.draw(st.integers(0, len(whole)))
    path = tmp_path_factory.mktemp("cut") / "p.jsonl"
    path.write_bytes(whole[:size])
    found, half_written = read_predictions(path)
    complete = whole[:size].count(b"\n")
    if size and whole[size : size + 1] == b"\n":  # a whole object that only lacks its newline
        complete += 1
    assert [row.text for row in found] == texts[:complete]
    assert half_written == (size > sum(len(line.encode()) for line in lines[:complete]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": 1, "prediction": "p", "ground_truth": "g"}{"id": 2}', "Extra data"),
        (b'{"id": 1, "prediction": \n', "malformed JSON"),
        (b'{"id": 1, "ground_truth": "g"}', 'no "prediction"'),
        (b'{"id": 1, "prediction": 5, "ground_truth": "g"}', 'no "prediction"'),
        (b'{"id": 1, "prediction": "p"}', 'no "ground_truth"'),
        (b'{"id": 0, "prediction": "p", "ground_truth": "g"}', "second prediction for id 0"),
        (b'{"id": [0], "prediction": "p", "ground_truth": "g"}', 'an "id" that is not an integer'),
        (b'{"id": "0", "prediction": "p", "ground_truth": "g"}', 'an "id" that is not an integer'),
        (b"nonsense", "malformed JSON"),
    ],
)
def test_a_bad_prediction_is_named_even_on_the_last_line(tmp_path, line, message):
    path = write(tmp_path / "p.jsonl", {"id": 0, "prediction": "p", "ground_truth": "g"})
    with open(path, "ab") as file:
        file.write(line)
    with pytest.raises(InputError, match=message) as raised:
        grade(path, benchmarks.get(), infinitebench.TASKS["passkey"])
    assert f"{path}, line 2: " in str(raised.value)


@given(st.lists(st.integers()), st.integers(0, 50))
def test_truncate_keeps_the_two_ends(ids, limit):
    kept = prompting.truncate(ids, limit)
    assert len(kept) == min(limit, len(ids))
    if len(ids) > limit:
        assert kept[: limit // 2] == ids[: limit // 2]
        assert kept[limit // 2 :] == ids[len(ids) - (limit - limit // 2) :]
    else:
        assert kept == ids


def test_truncate_refuses_a_negative_limit():
    with pytest.raises(InputError):
        prompting.truncate([1], -1)
