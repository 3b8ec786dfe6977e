"""Grades predictions on ∞Bench and prints a table: tasks down, runs across.

    python compute_scores.py --output_dir ../results                    every run, side by side
    python compute_scores.py --output_dir ../results --model_name RUN --task passkey --json s.json

A run is a directory with ``preds_<task>.jsonl`` files. A file that cannot be graded is named on
stderr, the rest is graded all the same, and the exit status is 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tasks
from kvevict.errors import InputError

DASH = "-"
KV = "kv_retrieval"


@dataclass(frozen=True)
class Grade:
    """The mean score of a task over its examples."""

    score: float
    examples: int


#: Grades by task name, for each run by name.
Grades = dict[str, dict[str, Grade]]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = _arguments(argv)
    try:
        runs = find_runs(args.output_dir, args.model_name)
        chosen = tasks.resolve(args.task) if args.task else _tasks_of(runs.values())
    except InputError as error:
        return _fail(error)
    grades: Grades = {}
    status = 0
    for run, directory in runs.items():
        grades[run] = {}
        for task in chosen:
            path = directory / f"preds_{task.name}.jsonl"
            try:
                if path.exists():
                    grades[run][task.name] = grade(path, task, run)
            except InputError as error:
                status = _fail(error)
    print(table(chosen, grades))
    if args.json:
        scores = {
            run: {name: grade.score for name, grade in of_run.items()}
            for run, of_run in grades.items()
        }
        try:
            args.json.write_text(json.dumps(scores, indent=1, ensure_ascii=False) + "\n", "utf-8")
        except OSError as error:
            status = _fail(f"cannot write {args.json}: {error.strerror}")
    return status


def find_runs(output_dir: Path, model_name: str | None = None) -> dict[str, Path]:
    """The run directories below ``output_dir`` by name, or only the one that is asked for.

    Raises ``InputError`` where there is none.
    """
    if not output_dir.is_dir():
        raise InputError(f"there is no output directory {output_dir}")
    found = sorted({path.parent for path in output_dir.rglob("preds_*.jsonl")})
    runs = {directory.relative_to(output_dir).as_posix(): directory for directory in found}
    if not runs:
        raise InputError(f"there are no predictions (preds_<task>.jsonl) below {output_dir}")
    if model_name is None:
        return runs
    name = Path(model_name).as_posix()
    if name not in runs:
        raise InputError(f"no predictions in {output_dir / name}; runs: {', '.join(runs)}")
    return {name: runs[name]}


def grade(path: Path, task: tasks.Task, model_name: str = "") -> Grade:
    """The mean score over a predictions file. Raises ``InputError`` that names file and line."""
    predictions, half_written = tasks.read_predictions(path)
    if half_written:
        print(f"note: {path}: the last line is half-written and left out", file=sys.stderr)
    if not predictions:
        raise InputError(f"{path} has no predictions")
    total = 0.0
    for prediction in predictions:
        try:
            total += tasks.score(task, prediction.text, prediction.label, model_name)
        except InputError as error:
            raise InputError(f"{path}, line {prediction.line}: {error}") from None
    return Grade(total / len(predictions), len(predictions))


def table(chosen: Iterable[tasks.Task], grades: Grades) -> str:
    """The grades as an aligned Markdown table.

    The averages are those of the release: over its tasks, with and without Retrieve.KV, as far as
    they have predictions; the number of tasks stands in brackets.
    """
    rows = [["Task", "Examples", *grades]]
    for task in chosen:
        of_task = [of_run.get(task.name) for of_run in grades.values()]
        counts = [str(n) for n in sorted({grade.examples for grade in of_task if grade})]
        cells = [f"{grade.score:.4f}" if grade else DASH for grade in of_task]
        rows.append([task.table_name, "/".join(counts) or DASH, *cells])
    for name, left_out in (("Average (tasks)", ()), ("Without KV (tasks)", (KV,))):
        names = [task for task in tasks.RELEASE_TASKS if task not in left_out]
        rows.append([name, "", *(_average(of_run, names) for of_run in grades.values())])
    return _markdown(rows)


def _average(grades: dict[str, Grade], names: Iterable[str]) -> str:
    scores = [grades[name].score for name in names if name in grades]
    return f"{sum(scores) / len(scores):.4f} ({len(scores)})" if scores else DASH


def _markdown(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    ruler = [":" + "-" * (widths[0] - 1)] + ["-" * (width - 1) + ":" for width in widths[1:]]
    lines = []
    for row in [rows[0], ruler, *rows[1:]]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _tasks_of(directories: Iterable[Path]) -> list[tasks.Task]:
    directories = list(directories)
    return [
        task
        for task in tasks.TASKS.values()
        if any((directory / f"preds_{task.name}.jsonl").exists() for directory in directories)
    ]


def _fail(message: object) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Grade predictions and print a table of tasks and runs."
    )
    parser.add_argument(
        "--task",
        help="all (the eleven of the release), or task names joined by commas; "
        "by default every task that has predictions",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("../results"))
    parser.add_argument(
        "--model_name", help="the run to grade, a directory of --output_dir; by default every one"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write {run: {task: score}} to FILE"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
