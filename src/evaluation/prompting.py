"""From examples to the tokens that a model reads."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks import Benchmark, Example, Task
from benchmarks.benchmark import Prompt
from kvevict.engine import longest_prompt
from kvevict.errors import InputError
from kvevict.methods import Policy
from kvevict.models.chat import ChatTemplate
from kvevict.models.checkpoint import Checkpoint
from kvevict.models.tokenizer import Tokenizer, added_tokens
from kvevict.repetition import Repetition

SPARE = 64  # tokens of an answer's prefix, and those that a text has more once it was cut


@dataclass(frozen=True)
class PromptTokens:
    """The tokens of one prompt.

    Attributes:
        compressed: what is prefilled and evicted from.
        after: what follows once that is done: the question, where it is not to be known before.
        question: how many of the last tokens of ``compressed`` are the question's.
        uncut: tokens of the whole prompt before it was cut.
    """

    compressed: list[int]
    after: list[int]
    question: int
    uncut: int

    @property
    def total(self) -> int:
        """Tokens that the model reads before it answers."""
        return len(self.compressed) + len(self.after)


@dataclass(frozen=True)
class Prompting:
    """How prompts are made of examples.

    Attributes:
        benchmark: whose rules hold.
        tokenizer, chat: of the model; ``chat`` is None where its template is not to be used.
        chat_everywhere: use the template for tasks that the benchmark asks without it, too.
        max_length: tokens of a prompt.
        positions: of the model, prompt and answer together.
        truncate: cut longer prompts in the middle; otherwise refuse them.
        compress: ``prompt`` evicts from the whole prompt, question included; ``context`` from the
            context alone, before the question is known.
        answer_prefix: let the answer begin as the benchmark has it.
    """

    benchmark: Benchmark
    tokenizer: Tokenizer
    chat: ChatTemplate | None
    chat_everywhere: bool
    max_length: int
    positions: int
    truncate: bool
    compress: str
    answer_prefix: bool = True

    def max_prompt_tokens(self, task: Task) -> int:
        """The most tokens that a prompt of ``task`` may have, those of a chat template apart.

        Raises:
            InputError: the answer alone takes all positions.
        """
        most = min(self.max_length, self.positions - task.max_new_tokens)
        if most < 1:
            raise InputError(
                f"{task.name} asks for {task.max_new_tokens} new tokens, which leave no room for "
                f"a prompt in the model's {self.positions} positions"
            )
        return most

    def leaving_positions(self, task: Task, policies: Sequence[Policy]) -> int:
        """The most tokens of a prompt, a template's apart, behind which policies may have any of
        its chunks repeated.
        """
        most = longest_prompt(policies, self.repetition(task), self.positions)
        return most - self._around(task) - SPARE if most < self.positions else most

    def template(self, task: Task) -> ChatTemplate | None:
        """The chat template, where a task is asked in it."""
        return self.chat if task.chat or self.chat_everywhere else None

    def repetition(self, task: Task) -> Repetition:
        """How the model is made to repeat the context of a task, for methods that score by it."""
        return Repetition.of(self.tokenizer, self.template(task))

    def last_token(self, text: str) -> int:
        """The last token of a text by itself."""
        return self._encode(text)[-1]

    def tokens(self, task: Task, example: Example) -> PromptTokens:
        """The tokens of an example.

        Raises:
            InputError: too long with truncation off, or a question without room for a context.
        """
        template = self.template(task)
        context, question, answer_prefix = self._texts(task, example)
        around = self._around(task, answer_prefix)
        fitting = self.positions - task.max_new_tokens
        most = min(self.max_prompt_tokens(task) + around, fitting)
        uncut = self._parts(context, question, answer_prefix, template)
        if uncut.total <= most:
            return uncut
        where = f"{task.name}, example {example.id}"
        if not self.truncate:
            raise InputError(
                f"{where}: the prompt has {uncut.total} tokens where {most} fit, and truncation is "
                "off"
            )
        if len(uncut.after) >= most:
            asked = len(uncut.after)
            raise InputError(f"{where}: the question alone has {asked} tokens, of {most}")
        parts = uncut
        if template or self.benchmark.cut_as_text:
            context, question = self._cut(context, question, max(2, most - around))
            parts = self._parts(context, question, answer_prefix, template)
        if self.benchmark.cut_as_text:  # some tokens more or less, once they are made of the text
            most = fitting
        cut = truncate(parts.compressed, most - len(parts.after))
        asked = min(parts.question, len(cut))
        return replace(parts, compressed=cut, question=asked, uncut=uncut.total)

    def _around(self, task: Task, answer_prefix: str = "") -> int:
        """What the template puts around a prompt beyond what the tokenizer would, in tokens."""
        if not (template := self.template(task)):
            return 0
        empty = self._parts("", "", answer_prefix, template), self._parts("", "", "", None)
        return empty[0].total - empty[1].total

    def reference(self, task: Task, example: Example) -> list[int]:
        """The tokens of the first reference answer as it follows the prompt, its first ones where
        it is longer than an answer may be; none where there is no such text."""
        answer = task.first_answer(example.fields)
        if answer is None:
            return []
        texts = self._texts(task, example)
        opened = self.template(task) and not texts.answer_prefix
        if not opened and not texts.text[-1:].isspace() and not answer[0].isspace():
            answer = f" {answer}"
        return self._encode(answer)[: task.max_new_tokens]

    def _texts(self, task: Task, example: Example) -> Prompt:
        prompt = task.prompt(example.fields)
        return prompt if self.answer_prefix else prompt._replace(answer_prefix="")

    def _parts(
        self, context: str, question: str, answer_prefix: str, template: ChatTemplate | None
    ) -> PromptTokens:
        """Texts as tokens, whole. What the tokenizer adds of itself goes around all of them."""
        before, after = ([], []) if template else added_tokens(self.tokenizer)
        if template:
            context, question = template.wrap(context, question)
        asked = self._encode(question + answer_prefix) + after
        if self.compress == "context":
            read = before + self._encode(context)
            return PromptTokens(read, asked, 0, len(read) + len(asked))
        read = before + self._encode(context + question + answer_prefix) + after
        return PromptTokens(read, [], len(asked), len(read))

    def _cut(self, context: str, question: str, most: int) -> tuple[str, str]:
        """The first and the last half of the tokens of a prompt, as texts, the question apart."""
        before, after = added_tokens(self.tokenizer)
        ids, asked = before + self._encode(context + question) + after, self._encode(question)
        half = most // 2
        first, last = (self.tokenizer.decode(part) for part in (ids[:half], ids[-half:]))
        if last.endswith(question):
            return first + last[: len(last) - len(question)], question
        if len(asked) >= half:  # nothing but the question is left of the second half
            return first, last
        end = len(ids) - len(after) - len(asked)
        return first + self.tokenizer.decode(ids[-half:end]), question

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, special_tokens=False)


def prompting_for(
    args: Namespace, chosen: list[Benchmark], checkpoint: Checkpoint, policies: list[Policy]
) -> Prompting:
    """How the prompts of a run are made.

    Where a policy needs positions behind a prompt, they are shorter, and ``args.max_length`` says
    how long, for all policies read the same ones and it is one of their settings.
    """
    benchmark = chosen[0]
    if args.chat == "on" and checkpoint.chat is None:
        raise InputError(f"--chat on: {args.model_path} has no chat template")
    prompting = Prompting(
        benchmark,
        checkpoint.tokenizer,
        None if args.chat == "off" else checkpoint.chat,
        chat_everywhere=args.chat == "on",
        max_length=args.max_length or benchmark.longest_prompt(checkpoint.max_positions),
        positions=checkpoint.max_positions,
        truncate=not args.no_truncation,
        compress=args.compress,
        answer_prefix=args.answer_prefix == "on",
    )
    fit = _leaving_positions(args, chosen, prompting, policies)
    if fit is None:
        return prompting
    args.max_length = fit
    return replace(prompting, max_length=fit)


def _leaving_positions(
    args: Namespace, chosen: list[Benchmark], prompting: Prompting, policies: list[Policy]
) -> int | None:
    """The longest prompts that leave positions for what policies repeat; None if all do."""
    wanted = prompting.benchmark.resolve(args.task)
    fit = min(prompting.leaving_positions(task, policies) for task in wanted)
    made = max(benchmark.length or prompting.max_length for benchmark in chosen)
    positions = prompting.positions
    if min(made, prompting.max_length, positions) <= fit:
        return None
    names = [p.name for p in policies if prompting.leaving_positions(wanted[0], [p]) < positions]
    needs = f"{', '.join(dict.fromkeys(names))} repeats chunks of a prompt behind it"
    if fit < 1:
        raise InputError(
            f"{needs}, which leaves no room for one in the model's {positions} positions: set a "
            "smaller chunk_size"
        )
    longer = "are refused" if args.no_truncation else "are cut to that, for every method"
    print(f"note: {needs}, for which {fit} tokens leave room in the model's {positions} positions: "
          f"longer ones {longer} (--max_length {fit})", file=sys.stderr)  # fmt: skip
    return fit


def truncate(token_ids: list[int], limit: int) -> list[int]:
    """At most ``limit`` tokens: the first and the last halves, so that the question stays.

    An odd limit gives the last half the extra token, as in ∞Bench.
    """
    if limit < 0:
        raise InputError(f"a prompt cannot be truncated to {limit} tokens")
    if len(token_ids) <= limit:
        return token_ids
    head = limit // 2
    return token_ids[:head] + token_ids[len(token_ids) - (limit - head) :]
