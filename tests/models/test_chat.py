"""Chat templates: what stands around a message, and what is refused."""

from __future__ import annotations

import pytest

from kvevict.errors import InputError
from kvevict.models.chat import ChatTemplate, read_chat_template

# As Qwen's and Llama 3's are, shortened.
QWEN = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content']"
    " + '<|im_end|>\n' }}{%- else %}{{- '<|im_start|>system\nBe helpful.<|im_end|>\n' }}"
    "{%- endif %}{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' +"
    " message.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
LLAMA = (
    "{{- bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] +"
    " '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)


def test_a_message_stands_between_what_the_template_has_around_it():
    template = ChatTemplate(QWEN, {}, "x")
    before, after = template.wrap("  A text. ", "A question?\n")
    assert before == ("<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\n  A text. ")
    assert after == "A question?\n<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_that_strips_is_followed():
    template = ChatTemplate(LLAMA, {"bos_token": "<|begin_of_text|>"}, "x")
    assert template.before.startswith("<|begin_of_text|><|start_header_id|>user")
    before, after = template.wrap("\n A text. ", "A question? \n")
    assert before.endswith("\n\nA text. ")
    assert after.startswith("A question?<|eot_id|>")
    assert template.wrap(" a ", "")[0].endswith("\n\na")


def test_a_conversation_as_one_text():
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    text = ChatTemplate(QWEN, {}, "x").render(turns, add_generation_prompt=False)
    assert text.endswith("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n")
    with pytest.raises(InputError, match="does not work: no assistants here"):
        ChatTemplate("{{ raise_exception('no assistants here') }}", {}, "x").render(turns)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('no users here') }}", "does not work: no users here"),
        ("{% for x in %}", "does not work"),
        ("{{ messages[0].content.__class__.__mro__ }}", "leaves the user's message out|does not"),
        ("nothing", "leaves the user's message out"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(source, message):
    with pytest.raises(InputError, match=message):
        ChatTemplate(source, {}, "x").wrap("a", "b")


def test_where_a_directory_has_its_template(tmp_path):
    assert read_chat_template(tmp_path, {}) is None
    source = "{{ bos_token }}[{{ messages[0].content }}]"
    config = {"bos_token": {"content": "<s>"}, "chat_template": source}
    assert read_chat_template(tmp_path, config).before == "<s>["
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": LLAMA}]
    assert read_chat_template(tmp_path, {"chat_template": named}).strips
    (tmp_path / "chat_template.jinja").write_text("<{{ messages[0].content }}>")
    assert read_chat_template(tmp_path, config).before == "<"


@pytest.mark.parametrize("source", [QWEN, LLAMA])
def test_a_second_question_stands_where_the_template_has_it(source):
    template = ChatTemplate(source, {"bos_token": "<s>"}, "x")
    turns = [("user", "one?"), ("assistant", "1."), ("user", "two?")]
    whole = template.render([{"role": role, "content": text} for role, text in turns])
    assert whole == "".join(
        [*template.wrap("", "one?"), "1.", template.between, "two?", template.after]
    )


def test_a_template_of_one_message_has_no_second_question():
    with pytest.raises(InputError, match="no second question"):
        assert ChatTemplate("[{{ messages[0].content }}]", {}, "x").between
