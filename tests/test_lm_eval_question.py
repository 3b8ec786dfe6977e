"""Where a prompt of the harness ends in its question, with and without a chat template."""

from __future__ import annotations

import pytest

from kvevict.lm_eval.question import question, templated
from kvevict.models.chat import ChatTemplate
from tests.models.test_chat import LLAMA, QWEN

SHOTS = "Question: Why?\nAnswer: So.\n\nQuestion: Who?\nAnswer: I.\n\n"


@pytest.mark.parametrize(
    ("context", "delimiter", "found"),
    [
        (SHOTS + "Question: What?\nAnswer:", "\n\n", "Question: What?\nAnswer:"),
        (SHOTS + "What? ", "\n\n", "What? "),
        (SHOTS + "What?\n\n", "\n\n", "What?\n\n"),  # not an empty question
        ("Question: What?\nAnswer:", "\n\n", "Question: What?\nAnswer:"),
        ("Why? So. ### What?", " ### ", "What?"),
        ("A long text.\n\nMore of it.\n\nWhat does it say?", "\n\n", "What does it say?"),
        ("", "\n\n", ""),
    ],
)
def test_it_is_what_stands_behind_the_last_delimiter(context, delimiter, found):
    assert question(context, delimiter) == found


def turns(*texts: str) -> list[dict[str, str]]:
    return [
        {"role": "assistant" if index % 2 else "user", "content": text}
        for index, text in enumerate(texts)
    ]


@pytest.mark.parametrize("source", [QWEN, LLAMA])
@pytest.mark.parametrize(
    ("messages", "last"),
    [
        (turns("Question: What?"), "Question: What?"),
        (turns("Why?", "So.", "a"), "a"),  # which is in the template, too
        (turns(SHOTS + "What?"), "What?"),
        (turns(SHOTS + "  What?"), "What?"),
        ([{"role": "system", "content": "Be\n\nbrief."}, *turns("user")], "user"),
    ],
)
def test_in_a_chat_template_it_ends_with_the_answers_header(source, messages, last):
    chat = ChatTemplate(source, {"bos_token": "<s>"}, "x")
    prompt = templated(chat, messages, True, "\n\n")
    assert prompt == chat.render(messages)
    assert question(prompt, "\n\n") == last + chat.after


def test_an_answer_that_has_begun_belongs_to_it():
    chat = ChatTemplate(QWEN, {}, "x")
    prompt = templated(chat, turns("Why?\n\nWhat?", "The answer is"), False, "\n\n")
    assert prompt.endswith("<|im_start|>assistant\nThe answer is")
    assert question(prompt, "\n\n") == prompt[prompt.index("What?") :]


def test_a_template_that_changes_the_text_has_none():
    chat = ChatTemplate("{{ messages[0].content | urlencode }}", {}, "x")
    assert question(templated(chat, turns("Why?\n\nWhat?"), True, "\n\n"), "\n\n") is None
