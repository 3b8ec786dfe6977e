"""Examples on disk: files of JSON lines, each line checked for what its task needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.benchmark import Benchmark, Example, Task
from kvevict.errors import InputError


def read_examples(benchmark: Benchmark, task: Task, data_dir: Path) -> Iterator[Example]:
    """The examples of a task, one in memory at a time.

    Raises:
        InputError: the file is missing, or a line is not an example that can be asked and graded;
            names file and line.
    """
    path = benchmark.file(data_dir, task)
    if not path.exists():
        raise InputError(f"there is no {path}; {_how_to_get(benchmark, path)}")
    yield from read_file(path, task)


def read_file(path: Path, task: Task) -> Iterator[Example]:
    """As :func:`read_examples`, of one file."""
    for number, row in iterate_json_lines(path):
        fields = task.parse(row)
        where = f"{path}, line {number}"
        fault = task.fault(fields)
        if fault:
            raise InputError(f"{where}: this {task.name} example {fault}")
        try:
            task.score("", task.reference(fields))
        except KeyError as error:
            raise InputError(
                f'{where}: this {task.name} example has no "{error.args[0]}"'
            ) from None
        except InputError as error:
            raise InputError(
                f"{where}: this {task.name} example has no good answer: {error}"
            ) from None
        yield Example(number - 1, fields)


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


def _how_to_get(benchmark: Benchmark, path: Path) -> str:
    if path.with_name(f"{path.name}.part").exists():
        return "its download is unfinished: run scripts/download_dataset.sh again"
    return benchmark.how_to_get
