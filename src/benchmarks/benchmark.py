"""What a benchmark is: all that the evaluator, the scorer, the report and the download know of it.

A benchmark is a module of this package with a tuple ``BENCHMARKS``. Its tasks turn a line of a data
file into a prompt and, later, an answer into a score.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from string import Formatter
from typing import Any, Callable, NamedTuple, Optional

from kvevict.errors import InputError

Fields = Mapping[str, Any]  # of one line of a data file
Figures = dict[str, Optional[float]]  # what a task's scores come to, 0 to 1 each


@dataclass(frozen=True)
class Example:
    """One line of a data file.

    Attributes:
        id: its line number, from 0.
        fields: what it holds.
    """

    id: int
    fields: dict[str, Any]


class Prompt(NamedTuple):
    """What a model reads, in the order in which it stands there.

    Attributes:
        context: the instruction and the long text, all that may be compressed before the question
            is known.
        question: what follows.
        answer_prefix: how the answer begins; behind a chat template's header of the answer.
    """

    context: str
    question: str
    answer_prefix: str = ""

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self)


@dataclass(frozen=True)
class Task:
    """One task: what is asked, and how an answer is scored.

    A benchmark whose lines need more than a template overrides :meth:`parse`, :meth:`values`,
    :meth:`fault` or :meth:`reference`.

    Attributes:
        name: what ``--task`` calls it; its data lie in ``<name>.jsonl``.
        title: of its column in a table.
        max_new_tokens: the longest answer.
        template: the prompt, with a line's fields in braces: ``{context}`` once, ``{input}`` and
            what else :meth:`values` gives.
        metric: score in [0, 1] of an answer, given what :meth:`reference` kept of the example.
            Raises :class:`InputError` where that cannot be graded.
        chat: whether the benchmark puts the prompt into the model's chat template.
        stop: a text that ends an answer which has begun, such as a line's end.
        examples: lines of the published file; 0 where none is published.
    """

    name: str
    title: str
    max_new_tokens: int
    template: str
    metric: Callable[[str, Any], float]
    chat: bool = False
    stop: str = ""
    examples: int = 0

    @property
    def file(self) -> str:
        """File name of the examples."""
        return f"{self.name}.jsonl"

    @property
    def needs(self) -> set[str]:
        """Names of the fields that the template has in braces."""
        return {name for _, name, *_ in Formatter().parse(self.template) if name}

    @property
    def note(self) -> str:
        """What has to be said below a table of its scores."""
        return ""

    def parse(self, row: dict[str, Any]) -> dict[str, Any]:
        """The fields of a line, under the names that the template has for them."""
        return row

    def values(self, fields: Fields) -> dict[str, str]:
        """What stands for the names in the template."""
        return {name: fields[name] for name in self.needs}

    def prompt(self, fields: Fields) -> Prompt:
        """The prompt of an example, whole."""
        head, _, tail = self.template.partition("{context}")
        values = self.values(fields)
        return Prompt(head.format(**values) + fields["context"], tail.format(**values))

    def reference(self, fields: Fields) -> dict[str, Any]:
        """What stands beside a prediction, all that scoring it takes."""
        return {"ground_truth": fields["answer"]}

    def first_answer(self, fields: Fields) -> str | None:
        """The first answer that scores, as a text; None where none is one."""
        answers = self.reference(fields).get("ground_truth")
        answers = answers if isinstance(answers, list) else [answers]
        return next((one for one in answers[:1] if isinstance(one, str) and one.strip()), None)

    def score(self, prediction: str, reference: Fields, model_name: str = "") -> float:
        """The score of one answer, 0 to 1.

        Args:
            reference: what :meth:`reference` gave, or the same keys read from a file.
            model_name: of the run, which some benchmarks' rules look at.

        Raises:
            InputError: the reference is not of the kind that the metric reads.
        """
        return float(self.metric(prediction, reference["ground_truth"]))

    def fault(self, fields: Fields) -> str | None:
        """What keeps ``fields`` from being an example, as part of a sentence; None for nothing."""
        for name in sorted(self.needs):
            if name not in fields:
                return f'has no "{name}"'
            if not isinstance(fields[name], str):
                return f'has a "{name}" that is not a text'
        return None


def mean_score(scores: Sequence[float], references: Sequence[Fields]) -> Figures:
    """The score of a task over its examples, as most benchmarks have it."""
    return {"": mean(scores)}


@dataclass(frozen=True)
class Benchmark:
    """Tasks that are run and averaged together.

    Attributes:
        name: what ``--benchmark`` calls it.
        title: what a reader calls it.
        tasks: by name, in the order of a table.
        groups: names for several tasks in ``--task``; ``all`` is there.
        averages: columns of a table: titles, and the names of the tasks averaged.
        how_to_get: the end of a sentence on what to do where the data are missing.
        folder: of the data, below ``--data_dir``.
        make: where data are made to a length: makes what a folder lacks, given the folder, tasks,
            length and tokenizer.
        length: that they are made to, in tokens of prompt and answer.
        aliases: other names of tasks.
        max_length: tokens that a prompt may have with any model; None where no rule says so.
        cut_as_text: a prompt that is cut goes on as text, and is tokenised once more.
        min_eviction_seqlen: of methods that are not told otherwise.
        scale: of a published score; 100 for percentages.
        decimals: that a published score is rounded to; None for none.
        summarise: the figures of a task from its examples' scores and references: one under the
            empty name, or several, None where no example counts into one.
    """

    name: str
    title: str
    tasks: dict[str, Task]
    groups: dict[str, tuple[str, ...]]
    averages: dict[str, tuple[str, ...]]
    how_to_get: str
    folder: str = ""
    make: Callable[[Path, Sequence[Task], int, Any], None] | None = None
    length: int | None = None
    aliases: dict[str, str] = field(default_factory=dict)
    max_length: int | None = None
    cut_as_text: bool = False
    min_eviction_seqlen: int = 0
    scale: float = 1.0
    decimals: int | None = None
    summarise: Callable[[Sequence[float], Sequence[Fields]], Figures] = mean_score

    def file(self, data_dir: Path, task: Task) -> Path:
        """Where the examples of a task lie."""
        return data_dir / self.folder / task.file

    def longest_prompt(self, positions: int) -> int:
        """Tokens that a prompt may have by the benchmark's rules.

        Args:
            positions: of the model, prompt and answer together.
        """
        return self.max_length or positions

    def at_length(self, length: int) -> Benchmark:
        """The same with data of this length, which have a folder of their own."""
        return replace(self, length=length, folder=f"{self.folder}/{length}")

    def resolve(self, spec: str, offered: Iterable[str] = ()) -> list[Task]:
        """The tasks that ``--task`` names: names and groups joined by commas.

        Each task comes once, in the order given.

        Raises:
            InputError: a name is neither; it lists those ``offered``, by default all.
        """
        names: list[str] = []
        for part in spec.split(","):
            name = part.strip()
            names += self.groups.get(name, (self.aliases.get(name, name),))
        for name in names:
            if name not in self.tasks:
                known = ", ".join([*self.groups, *(offered or self.tasks)])
                raise InputError(f"unknown task {name!r}; choose from {known}")
        return [self.tasks[name] for name in dict.fromkeys(names)]

    def published(self, figures: Figures) -> float | Figures:
        """Figures on the benchmark's own scale; a single one as a number."""
        scaled = {name: self._scaled(figure) for name, figure in figures.items()}
        return scaled[""] if list(scaled) == [""] else scaled

    def shown(self, figures: Figures) -> str:
        """The same as a table has it."""
        decimals = 4 if self.decimals is None else self.decimals
        scaled = map(self._scaled, figures.values())
        return "/".join("-" if figure is None else f"{figure:.{decimals}f}" for figure in scaled)

    def _scaled(self, figure: float | None) -> float | None:
        if figure is None or self.decimals is None:
            return figure
        return round(self.scale * figure, self.decimals)


def by_name(tasks: Iterable[Task]) -> dict[str, Task]:
    """Tasks by their names, in order."""
    return {task.name: task for task in tasks}
