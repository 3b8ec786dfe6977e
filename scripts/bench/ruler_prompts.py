"""RULER's prompts for a bench: made with the model's tokenizer, unless they are there."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import benchmarks
from benchmarks import Example, Task
from benchmarks.examples import read_examples
from evaluation.prompting import Prompting, PromptTokens
from kvevict.backends import LoadedModel


def ruler_prompts(
    model: LoadedModel,
    tasks: str,
    length: int,
    examples: int,
    compress: str,
    data_dir: Path | None = None,
) -> list[tuple[Task, Example, PromptTokens]]:
    """Of each task in turn.

    Args:
        tasks: names, joined by commas.
        length: tokens of prompt and answer.
        examples: of each task.
        compress: as for ``eval_llama3.py``.
        data_dir: where they are kept; by default in a directory that goes again.
    """
    ruler = benchmarks.get("ruler").at_length(length)
    chosen = ruler.resolve(tasks)
    prompting = Prompting(
        ruler, model.tokenizer, model.chat, chat_everywhere=False, max_length=length,
        positions=model.max_positions, truncate=False, compress=compress,
    )  # fmt: skip
    with ExitStack() as stack:
        folder = data_dir or Path(stack.enter_context(TemporaryDirectory()))
        ruler.make(folder / ruler.folder, chosen, length, model.tokenizer, examples)
        return [
            (task, example, prompting.tokens(task, example))
            for task in chosen
            for example in islice(read_examples(ruler, task, folder), examples)
        ]
