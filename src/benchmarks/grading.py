"""Examples and predictions on disk, and the text and tokens made from them."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.infinitebench import OPTION_LETTERS, Task, score
from benchmarks.metrics import Label
from kvevict.errors import InputError

LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Example:
    """One line of a data file: its 0-based line number and its fields."""

    id: int
    fields: dict[str, Any]


@dataclass(frozen=True)
class Prediction:
    """One line of a predictions file: its line number from 1, what was said, what was right."""

    line: int
    text: str
    label: Label


@dataclass(frozen=True)
class Grade:
    """The mean score of a task over its examples."""

    score: float
    examples: int


def read_examples(path: str | Path, task: Task) -> list[Example]:
    """All examples of a data file, each checked for what ``task`` needs.

    The context may be called ``content``, as in some published files. Raises ``InputError`` that
    names file and line for a missing file, malformed JSON, or a missing or ill-typed field.
    """
    return list(iterate_examples(path, task))


def iterate_examples(path: str | Path, task: Task) -> Iterator[Example]:
    """As ``read_examples``, one example in memory at a time."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"there is no {path}; {_how_to_get(path)}")
    for number, fields in iterate_json_lines(path):
        if "context" not in fields and "content" in fields:
            fields["context"] = fields.pop("content")
        fault = _fault(task, fields)
        if fault:
            raise InputError(f"{path}, line {number}: this {task.name} example {fault}")
        yield Example(number - 1, fields)


def check_published(path: str | Path, task: Task) -> None:
    """Raises ``InputError`` unless ``path`` is the whole published file of ``task``."""
    found = sum(1 for _ in iterate_examples(path, task))
    if found != task.examples:
        raise InputError(f"{path} has {found} examples, the published file has {task.examples}")


def read_predictions(path: str | Path) -> tuple[list[Prediction], bool]:
    """All predictions of a file, and whether a half-written last line was left out.

    A line is ``{"id": …, "prediction": …, "ground_truth": …}``; published files also say ``pred``
    and ``label``. A last line without its newline that breaks off is that of a run in progress.
    Raises ``InputError`` that names file and line for anything else that is not a prediction, and
    for an id that comes twice.
    """
    try:
        lines = Path(path).read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    half_written = bool(lines) and _breaks_off(lines[-1])
    predictions: list[Prediction] = []
    seen = set()
    for number, line in enumerate(lines[:-1] if half_written else lines, start=1):
        if not line.strip():
            continue
        row = parse_json_line(path, number, line)
        where = f"{path}, line {number}"
        text = row.get("prediction", row.get("pred"))
        if not isinstance(text, str):
            raise InputError(f'{where}: no "prediction" that is a text')
        if "ground_truth" not in row and "label" not in row:
            raise InputError(f'{where}: no "ground_truth"')
        if "id" in row:
            if type(row["id"]) is not int:
                raise InputError(f'{where}: an "id" that is not an integer')
            if row["id"] in seen:
                raise InputError(f"{where}: a second prediction for id {row['id']}")
            seen.add(row["id"])
        predictions.append(Prediction(number, text, row.get("ground_truth", row.get("label"))))
    return predictions, half_written


def grade(path: str | Path, task: Task, run: str = "") -> Grade:
    """The mean score over the predictions file of a run of this name.

    A half-written last line is left out, and stderr says so. Raises ``InputError`` that names file
    and line.
    """
    predictions, half_written = read_predictions(path)
    if half_written:
        print(f"note: {path}: the last line is half-written and left out", file=sys.stderr)
    if not predictions:
        raise InputError(f"{path} has no predictions")
    total = 0.0
    for prediction in predictions:
        try:
            total += score(task, prediction.text, prediction.label, run)
        except InputError as error:
            raise InputError(f"{path}, line {prediction.line}: {error}") from None
    return Grade(total / len(predictions), len(predictions))


def iterate_json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file with their line numbers from 1; empty lines are skipped."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, parse_json_line(path, number, line)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def parse_json_line(path: str | Path, number: int, line: bytes) -> dict[str, Any]:
    """One line as an object, or an ``InputError`` that names file and line."""
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise InputError(f"{path}, line {number}: not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "unreadable"
        raise InputError(f"{path}, line {number}: malformed JSON ({reason})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}, line {number}: not a JSON object")
    return value


def _how_to_get(path: Path) -> str:
    if path.with_name(f"{path.name}.part").exists():
        return "its download is unfinished: run scripts/download_dataset.sh again"
    return (
        "scripts/download_dataset.sh fetches ∞Bench, data/construct_synthetic_dataset.py builds "
        "synthetic examples"
    )


def _fault(task: Task, fields: Mapping[str, Any]) -> str | None:
    """What keeps ``fields`` from being an example of ``task``, as part of a sentence, or None."""
    needed = ["context", "answer"] + ["input"] * task.needs_input + ["options"] * task.has_options
    for name in needed:
        if name not in fields:
            return f'has no "{name}"'
    for name in {"context", "input"}.intersection(needed):
        if not isinstance(fields[name], str):
            return f'has a "{name}" that is not a text'
    if task.has_options:
        return _option_fault(fields["options"], fields["answer"])
    if task.input_pattern and not re.search(task.input_pattern, fields["input"]):
        return f'has an "input" that does not say what {task.name} asks for'
    return None


def _option_fault(options: Any, answer: Any) -> str | None:
    count = len(OPTION_LETTERS)
    if not isinstance(options, list) or len(options) != count:
        return f'has no list of {count} "options"'
    if not all(isinstance(option, str) for option in options):
        return 'has "options" that are not texts'
    given = answer if isinstance(answer, list) else [answer]
    if len(given) == 2 and given[1] in OPTION_LETTERS and isinstance(given[0], str):
        return None
    if len(given) != 1 or given[0] not in options:
        return 'has an "answer" that is none of its "options"'
    return None


def _breaks_off(line: bytes) -> bool:
    """Whether a line is the start of an object. A whole one with something behind it is not."""
    if line.endswith(b"\n") or not line.startswith(b"{"):
        return False
    try:
        json.JSONDecoder().raw_decode(line.decode(errors="replace"))
    except ValueError:
        return True
    return False


def normalise(text: str) -> str:
    """NFC, with each lone surrogate replaced by U+FFFD: safe for any tokenizer."""
    return LONE_SURROGATE.sub("\ufffd", unicodedata.normalize("NFC", text))


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
