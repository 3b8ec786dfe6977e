"""Chat templates: what a model's instruction tuning has put around a user's message."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from kvevict.errors import InputError

# A private character, which no template looks at, between spaces, which some strip.
MESSAGE = " \ue000 "
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


class ChatTemplate:
    """A Jinja template over ``messages``, run in a sandbox when it is first asked for.

    Args:
        source: the template, as ``tokenizer_config.json`` or a GGUF has it.
        special_tokens: texts of ``bos_token`` and the like, which templates name.
        where: the file that it comes from, for errors.

    Attributes:
        source: as given.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: str) -> None:
        self.source, self._special_tokens, self._where = source, special_tokens, where

    @property
    def before(self) -> str:
        """What stands before a user's message."""
        return self._parts[0]

    @property
    def after(self) -> str:
        """What stands behind it, up to where the answer begins."""
        return self._parts[2]

    @property
    def strips(self) -> bool:
        """Whether white space at the ends of the message is dropped."""
        return self._parts[1] != MESSAGE

    def render(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as one text.

        Args:
            messages: each with a ``role`` and its ``content``.
            add_generation_prompt: end where the answer begins.

        Raises:
            InputError: the template does not work, or not with these messages.
        """
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        # No strftime_now: a template that would tell the date then takes the one written in it.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.globals["raise_exception"] = _refuse
        environment.filters["tojson"] = _to_json
        try:
            return environment.from_string(self.source).render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise InputError(f"the chat template of {self._where} does not work: {error}") from None

    @cached_property
    def between(self) -> str:
        """What stands between an answer and the user's next message.

        Raises:
            InputError: the template does not work, or takes one message only.
        """
        turns = [MESSAGE, MESSAGE.strip() * 2, MESSAGE]
        roles = ("user", "assistant", "user")
        text = self.render([{"role": r, "content": c} for r, c in zip(roles, turns)])
        answer, message = turns[1], self._parts[1]
        if answer not in text or message not in text.partition(answer)[2]:
            raise InputError(f"the chat template of {self._where} has no second question")
        return text.partition(answer)[2].partition(message)[0]

    @cached_property
    def _parts(self) -> tuple[str, str, str]:
        """The text around a message, and the message as the template lets it through.

        Raises:
            InputError: the template does not work, or has no place for a message.
        """
        text = self.render([{"role": "user", "content": MESSAGE}])
        for message in (MESSAGE, MESSAGE.strip()):
            if message in text:
                return text.partition(message)
        raise InputError(f"the chat template of {self._where} leaves the user's message out")

    def wrap(self, context: str, question: str) -> tuple[str, str]:
        """A message in two parts with the template around it: texts to be joined as they are."""
        if self.strips:
            context = context.lstrip()
            question = question.rstrip()
            context = context if question else context.rstrip()
        return self.before + context, question + self.after


def read_chat_template(path: Path, config: Mapping[str, Any]) -> ChatTemplate | None:
    """The chat template of a model directory; None where it has none.

    Args:
        config: of its ``tokenizer_config.json``.

    Raises:
        InputError: it is there and does not work.
    """
    source, where = config.get("chat_template"), path / "tokenizer_config.json"
    if isinstance(source, list):  # several under names
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        source = named.get("default")
    if (path / "chat_template.jinja").is_file():
        where = path / "chat_template.jinja"
        source = where.read_text(encoding="utf-8")
    if not isinstance(source, str):
        return None
    tokens = {name: _token_text(config[name]) for name in SPECIAL_TOKENS if config.get(name)}
    return ChatTemplate(source, tokens, str(where))


def _token_text(token: Any) -> str:
    """A special token in ``tokenizer_config.json``: a text, or an object that has it."""
    return token.get("content", "") if isinstance(token, dict) else str(token)


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
