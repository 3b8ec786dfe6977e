"""Where the question begins in the harness's prompts, for methods whose proxies are its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..models.chat import MESSAGE, ChatTemplate

MARK = MESSAGE.strip()  # which no template looks at


class Templated(str):
    """A prompt in a chat template, which hides where its last message begins.

    Attributes:
        question: the end of it, from the question on; None where the template changes its text.
    """

    question: str | None = None


def question(context: str, delimiter: str) -> str | None:
    """The question of a prompt, what follows it included.

    That is the last example's part: what stands behind the last ``delimiter`` of examples, and the
    whole prompt where there is none. In a chat template it is that part of the last user's message.

    Args:
        context: the prompt as the harness hands it on.
        delimiter: what the task has between examples.
    """
    if isinstance(context, Templated):
        return context.question
    return context[_start(context, delimiter) :]


def templated(
    chat: ChatTemplate,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool,
    delimiter: str,
) -> Templated:
    """Messages in a chat template, the last one open unless the answer's header is added.

    Raises:
        InputError: the template does not work, or not with these messages.
    """
    text = chat.render(messages, add_generation_prompt)
    marked = chat.render(_marked(messages, delimiter), add_generation_prompt)
    if not add_generation_prompt:
        last = messages[-1]["content"]
        last = last if last in text else last.strip()
        text = text[: text.rindex(last) + len(last)]
    prompt = Templated(text)
    head, mark, tail = marked.partition(MARK)
    if mark and (head + tail).startswith(text):
        prompt.question = text[len(head) :]
    return prompt


def _marked(messages: Sequence[Mapping[str, str]], delimiter: str) -> Sequence[Mapping[str, str]]:
    """The same with a mark where the last user's question begins."""
    users = [index for index, one in enumerate(messages) if one["role"] == "user"]
    marked = list(messages)
    for index in users[-1:]:
        content = messages[index]["content"]
        start = _start(content, delimiter)
        start += len(content[start:]) - len(content[start:].lstrip())  # some templates strip
        marked[index] = {**messages[index], "content": content[:start] + MARK + content[start:]}
    return marked


def _start(text: str, delimiter: str) -> int:
    """Where the last example's part begins. A delimiter at the very end is part of it."""
    found = text.rfind(delimiter, 0, len(text.rstrip()))
    return 0 if found < 0 else found + len(delimiter)
