"""What was answered: each question with every run's answer, as text for a terminal."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import Benchmark, Example, Task
from benchmarks.examples import read_examples
from benchmarks.grading import grade, read_predictions
from kvevict.errors import InputError
from reporting.records import Record, read_lines, read_records
from reporting.style import amount, display, rank
from reporting.variants import label_variants

MIB = 2**20
WIDTH = 100
LONGEST = 400  # characters shown of a text


class Question(NamedTuple):
    """One example put to one model."""

    model: str
    benchmark: str
    length: int | None
    task: str
    example: int


@dataclass(frozen=True)
class Answer:
    """What one run said to it.

    Attributes:
        policy: as recorded.
        text: what was said.
        score: 0 to 1.
        stats: of the example, as the run recorded them; empty where they are lost.
        label: the method's name, where settings differ with those.
    """

    policy: dict[str, Any]
    text: str
    score: float
    stats: dict[str, Any]
    label: str = ""

    @property
    def keep(self) -> float:
        """Share of the cache that was to be kept, or entries of a head where above 1."""
        return self.policy.get("budget") or self.policy["keep_ratio"]

    @property
    def order(self) -> tuple[bool, float, tuple[int, str]]:
        """The full cache first, then what keeps more, then as methods stand in every table."""
        return self.policy["name"] != "full", -self.keep, rank(self.label)


def answers(output_dir: Path, data_dir: Path) -> str:
    """Every question that the runs below ``output_dir`` have answered, with all answers.

    Args:
        data_dir: as it was when they ran.

    Raises:
        InputError: there are no runs, one of their files is broken, or their data are not there.
    """
    asked: dict[Question, list[Answer]] = defaultdict(list)
    benchmarks: dict[Question, Benchmark] = {}
    for record in read_records(output_dir):
        for task, file in record.predictions():
            for question, answer in _answers(record, task, file):
                asked[question].append(answer)
                benchmarks[question] = record.benchmark
    if not asked:
        raise InputError(f"the runs below {output_dir} have no predictions yet")
    blocks = []
    for question, found in asked.items():
        labels = label_variants([answer.policy for answer in found])
        found = [replace(answer, label=label) for answer, label in zip(found, labels)]
        task, example = _example(benchmarks[question], question, data_dir)
        blocks.append(_heading(question, task, example, found) + "\n\n" + _table(found))
    return "\n\n".join(blocks)


def _answers(record: Record, task: Task, file: Path) -> list[tuple[Question, Answer]]:
    predictions, _ = read_predictions(file)
    grades = grade(file, record.benchmark, task, record.name)
    of_stats = file.with_name(f"stats_{task.name}.jsonl")
    stats = {row.get("id"): row for _, row, _ in read_lines(of_stats)}
    settings, found = record.settings, []
    for prediction, score in zip(predictions, grades.scores):
        if prediction.id is None:
            raise InputError(f'{file}, line {prediction.line}: no "id"')
        question = Question(
            settings["model"], record.benchmark.name, settings.get("length"), task.name,
            prediction.id,
        )  # fmt: skip
        own = stats.get(prediction.id, {})
        found.append((question, Answer(settings["policy"], prediction.text, score, own)))
    return found


def _example(benchmark: Benchmark, question: Question, data_dir: Path) -> tuple[Task, Example]:
    if question.length is not None:
        benchmark = benchmark.at_length(question.length)
    task = benchmark.tasks[question.task]
    for example in read_examples(benchmark, task, data_dir):
        if example.id == question.example:
            return task, example
    raise InputError(f"{benchmark.file(data_dir, task)} has no example {question.example}")


def _heading(question: Question, task: Task, example: Example, found: list[Answer]) -> str:
    """What was asked, and what is right."""
    tokens = {answer.stats.get("prompt_tokens") for answer in found} - {None}
    of = f", a prompt of {max(tokens):,} tokens" if tokens else ""
    prompt, label = task.prompt(example.fields), task.reference(example.fields).get("ground_truth")
    right = list(dict.fromkeys(map(str, label))) if isinstance(label, list) else [str(label)]
    return "\n".join(
        [
            f"{task.title}, example {question.example} ({question.model}{of})",
            _wrapped("asked: ", "… " + _short_end(prompt.question + prompt.answer_prefix)),
            _wrapped("right: ", _short(" | ".join(right))),
        ]
    )


def _table(found: list[Answer]) -> str:
    rows = [("method", "kept", "cache MiB", "score", "answer")]
    for answer in sorted(found, key=lambda answer: answer.order):
        held = answer.stats.get("cache_bytes")
        rows.append(
            (
                display(answer.label),
                "all" if answer.policy["name"] == "full" else amount(answer.keep),
                "–" if held is None else f"{held / MIB:.1f}",
                f"{answer.score:.3g}",
                _short(answer.text) or "(nothing)",
            )
        )
    *widths, _ = (max(map(len, column)) for column in zip(*rows))
    lines = []
    for method, *figures, text in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(figures, widths[1:])]
        start = "  ".join(["", f"{method:<{widths[0]}}", *cells, ""])
        lines.append(_wrapped(start, text))
    return "\n".join(lines)


def _wrapped(start: str, text: str) -> str:
    """``text`` behind ``start``, its further lines below its first."""
    return textwrap.fill(
        text,
        max(WIDTH, len(start) + 40),
        initial_indent=start,
        subsequent_indent=" " * len(start),
    )


def _short(text: str) -> str:
    """The beginning of a text, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[:LONGEST].rstrip() + " …"


def _short_end(text: str) -> str:
    """The end of a text, on one line."""
    return " ".join(text.split())[-LONGEST:].lstrip()
