"""Prompts, labels and the table of tasks, against the benchmark's protocol."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import benchmarks
from benchmarks import infinitebench
from kvevict.errors import InputError

PROTOCOL = Path(__file__).parents[3] / "shared" / "infinitebench.md"
OPTIONS = ["Ann", "Bob", "Cyd", "Dan"]
INPUTS = {
    "code_run": "Please give me the exact number of the return value of func_12(-3). Be concise.",
    "math_find": "Only one number. The second largest number of the list is: ",
}


def example(name: str, context: str = "CONTEXT", **fields) -> benchmarks.Example:
    fields = {
        "context": context,
        "input": INPUTS.get(name, "INPUT"),
        "answer": "Bob",
        "options": OPTIONS,
        **fields,
    }
    return benchmarks.Example(0, fields)


# What stands before the context, and what behind it.
FULL_PROMPTS = {
    "passkey": (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize "
        "it. I will quiz you about the important information.\n\n",
        "\n\nINPUT\n\nThe pass key is",
    ),
    "longbook_choice_eng": (
        "Read the book and answer the question.\n\n",
        "\n\nQuestion: INPUT\nA. Ann\nB. Bob\nC. Cyd\nD. Dan"
        "\n\nThe letter of the correct answer is",
    ),
    "longbook_qa_chn": ("阅读以下书籍然后回答问题。\n\n", "\n\n问题：INPUT\n答案："),
    "math_find": (
        "What is the second largest number in the following list?\n\n",
        "\n\n" + INPUTS["math_find"],
    ),
    "math_calc": (
        "Let us calculate the intermediate values of an expression.\n\nExpression: 1 + 3 + 4\n"
        "Values: [1, 4, 8]\n\nExpression: 8 - 3 + 2 - 4\nValues: [8, 5, 7, 3]\n\nExpression: ",
        "\nValues:",
    ),
    "code_run": (
        "There is a function called func_12 in the following Python code.\n\n",
        "\n\nPlease compute the exact value of func_12(-3). The value of func_12(-3) is",
    ),
}


@pytest.mark.parametrize("name", FULL_PROMPTS)
def test_prompt_is_the_releases(name):
    head, tail = FULL_PROMPTS[name]
    assert infinitebench.TASKS[name].prompt(example(name).fields).text == head + "CONTEXT" + tail


@pytest.mark.published("infinitebench.md")
def test_every_template_and_number_is_that_of_the_protocol():
    text = PROTOCOL.read_text("utf-8")
    templates = dict(re.findall(r"^- (\w+): `(.*?)`(?:,|$)", text, re.MULTILINE))
    templates = {name: line.replace("⏎", "\n") for name, line in templates.items()}
    spelling = {
        "{option A}": "Ann",
        "{…B}": "Bob",
        "{…C}": "Cyd",
        "{…D}": "Dan",
        "{the … number}": "the second largest number",
        "{func_call}": "func_12(-3)",
        "{func}": "func_12",
        "{context}": "CONTEXT",
    }
    compared = 0
    for name in infinitebench.RELEASE_TASKS:
        wanted = templates[name]
        if name == "code_debug":
            for option in OPTIONS:
                wanted = wanted.replace("{…}", option, 1)
        for field, value in spelling.items():
            wanted = wanted.replace(field, value)
        wanted = wanted.replace("{input}", INPUTS.get(name, "INPUT"))
        assert infinitebench.TASKS[name].prompt(example(name).fields).text == wanted
        compared += 1
    assert compared == 11
    rows = re.findall(r"^\| (\S+) \| (\w+)[^|]*\| [^|]*\| (\d+) \| (\d+) \|", text, re.MULTILINE)
    table = [(t.title, t.name, t.examples, t.max_new_tokens) for t in infinitebench.TASKS.values()]
    assert sorted(table[:12]) == sorted((a, b, int(c), int(d)) for a, b, c, d in rows)


@given(st.sampled_from(list(infinitebench.TASKS)), st.text(), st.text())
def test_split_prompt_ends_its_first_part_with_the_context(name, context, question):
    fields = {} if name in INPUTS else {"input": question}
    one = example(name, context, **fields)
    first, second = infinitebench.TASKS[name].prompt(one.fields)[:2]
    assert first.endswith(unicodedata.normalize("NFC", context))
    assert first + second == infinitebench.TASKS[name].prompt(one.fields).text


def test_braces_in_the_data_are_left_alone():
    one = example("kv_retrieval", '{"{input}": "{context}"}', input="{0} {x!r}")
    assert (
        infinitebench.TASKS["kv_retrieval"]
        .prompt(one.fields)
        .text.endswith('\n\n{"{input}": "{context}"}\n\n{0} {x!r}')
    )


@pytest.mark.parametrize("answer", ["Cyd", ["Cyd"], ["Cyd", "C"]])
@pytest.mark.parametrize("name", ["code_debug", "longbook_choice_eng"])
def test_label_of_a_choice_is_text_and_letter(name, answer):
    reference = infinitebench.TASKS[name].reference(example(name, answer=answer).fields)
    assert reference == {"ground_truth": ["Cyd", "C"]}


@pytest.mark.parametrize("answer", ["x", 7, ["x", "y"], 48.0])
def test_other_labels_are_the_answer(answer):
    fields = example("longbook_qa_eng", answer=answer).fields
    assert infinitebench.TASKS["longbook_qa_eng"].reference(fields) == {"ground_truth": answer}


def test_all_is_the_release_without_math_calc_and_our_own():
    names = [task.name for task in benchmarks.get().resolve("all")]
    assert len(names) == 11
    assert not {"math_calc", "needle", "kv_confusable"}.intersection(names)


def test_resolve_keeps_order_drops_repeats_and_knows_the_alias():
    spec = "needle, longbook_sum_qa,passkey,longbook_sum_eng"
    names = [task.name for task in benchmarks.get().resolve(spec)]
    assert names == ["needle", "longbook_sum_eng", "passkey"]
    assert [t.name for t in benchmarks.get().resolve("all,math_calc")][-1] == "math_calc"


@pytest.mark.parametrize("spec", ["pass_key", "", "passkey,", "ALL"])
def test_unknown_task_is_named_with_the_valid_ones(spec):
    with pytest.raises(InputError, match=r"unknown task '.*'; choose from all, passkey, .*needle"):
        benchmarks.get().resolve(spec)


@given(st.text(st.sampled_from("ae\u0301\u0308Åﬁ"), min_size=1))
def test_prompts_are_in_nfc(text):
    fields = example("longbook_qa_eng", text, input=text).fields
    prompt = infinitebench.TASKS["longbook_qa_eng"].prompt(fields)
    composed = unicodedata.normalize("NFC", text)
    assert prompt.context.endswith(composed) and composed in prompt.question
