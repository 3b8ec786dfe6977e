"""Grades predictions and prints tables: runs down, tasks across.

    python compute_scores.py --output_dir ../results                    every run
    python compute_scores.py --output_dir ../results --model_name RUN --task passkey --json s.json
    python compute_scores.py --output_dir DIR --benchmark longbench     published prediction files

A run is a directory with ``preds_<task>.jsonl`` files; where ``run.json`` lies beside them, it
gives the benchmark, the method and the share of the cache that was kept. With ``--benchmark`` files
called ``<task>.jsonl`` count too. A file that cannot be read or graded is named on stderr, the rest
is graded all the same, and the exit status is 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import benchmarks
from benchmarks import Benchmark, Task
from benchmarks.grading import Grades, grade
from kvevict import files
from kvevict.command import Parser, command, fail, from_here, user_path
from kvevict.errors import InputError
from reporting.variants import label_variants

RESULTS = Path(__file__).resolve().parents[1] / "results"
DASH = "-"

#: Grades by task name, for each run by name.
GradesByRun = dict[str, dict[str, Grades]]


@command()
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = _arguments(argv)
    wanted = benchmarks.get(args.benchmark) if args.benchmark else None
    runs = find_runs(args.output_dir, args.model_name, wanted)
    status, records = 0, {}
    of_benchmark: dict[str, dict[str, Path]] = defaultdict(dict)
    for run, directory in runs.items():
        try:
            if (directory / "run.json").exists():
                records[run] = read_record(directory / "run.json")
        except InputError as error:
            status = fail(error)
        settings = records[run]["settings"] if run in records else {}
        name = args.benchmark or settings.get("benchmark", benchmarks.DEFAULT)
        of_benchmark[name][run] = directory
    scores: dict[str, dict[str, Any]] = {run: {} for run in runs}
    for number, (name, own) in enumerate(of_benchmark.items()):
        try:
            benchmark = benchmarks.get(name)
            chosen = benchmark.resolve(args.task) if args.task else _tasks_of(benchmark, own)
        except InputError as error:
            status = fail(error)
            continue
        grades, failed = _grade(benchmark, chosen, own)
        status = 2 if failed else status
        if len(of_benchmark) > 1:
            print(f"{chr(10) * (number > 0)}{benchmark.title}")
        print(table(benchmark, chosen, grades, records))
        for run, of_run in grades.items():
            scores[run] = {task: _published(benchmark, found) for task, found in of_run.items()}
    if args.json:
        files.write(args.json, json.dumps(scores, indent=1, ensure_ascii=False) + "\n")
    return status


def _grade(
    benchmark: Benchmark, chosen: list[Task], runs: dict[str, Path]
) -> tuple[GradesByRun, bool]:
    """The grades of each run, and whether a file could not be graded."""
    grades: GradesByRun = {run: {} for run in runs}
    failed = False
    for run, directory in runs.items():
        for task in chosen:
            path = _predictions(directory, task)
            try:
                if path:
                    grades[run][task.name] = grade(path, benchmark, task, run)
            except InputError as error:
                failed = bool(fail(error))
    return grades, failed


def _predictions(directory: Path, task: Task) -> Path | None:
    """The predictions of a task: our file, or one named as published; None for neither."""
    for path in (directory / f"preds_{task.file}", directory / task.file):
        if path.exists():
            return path
    return None


def _published(benchmark: Benchmark, grades: Grades) -> float | dict[str, float]:
    """A task's score on the benchmark's scale; by name where it has several."""
    figures = {name: benchmark.published(figure) for name, figure in grades.figures.items()}
    return figures[""] if list(figures) == [""] else figures


def find_runs(
    output_dir: Path, model_name: str | None = None, benchmark: Benchmark | None = None
) -> dict[str, Path]:
    """The run directories below ``output_dir`` by name, or only the one that is asked for.

    Args:
        benchmark: where directories count too that have files named after its tasks alone.

    Raises:
        InputError: there is none.
    """
    if not output_dir.is_dir():
        raise InputError(f"there is no output directory {output_dir}")
    files = list(output_dir.rglob("preds_*.jsonl"))
    if benchmark:
        files += [path for task in benchmark.tasks.values() for path in output_dir.rglob(task.file)]
    found = sorted({path.parent for path in files})
    runs = {directory.relative_to(output_dir).as_posix(): directory for directory in found}
    if not runs:
        raise InputError(f"there are no predictions (preds_<task>.jsonl) below {output_dir}")
    if model_name is None:
        return runs
    name = Path(model_name).as_posix()
    if name not in runs:
        raise InputError(f"no predictions in {output_dir / name}; runs: {', '.join(runs)}")
    return {name: runs[name]}


def read_record(path: Path) -> dict[str, Any]:
    """What run.json says. Raises ``InputError`` where that is not the record of a run."""
    try:
        record = json.loads(path.read_text("utf-8"))
        label_variants([record["settings"]["policy"]])
        _kept(record, dict.fromkeys(record["tasks"]))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        raise InputError(f"{path} is not the record of a run") from None
    return record


def table(
    benchmark: Benchmark,
    chosen: list[Task],
    grades: GradesByRun,
    records: dict[str, dict[str, Any]],
) -> str:
    """The grades as an aligned Markdown table, with methods and what they kept from ``records``.

    The averages are the benchmark's own, over those of their tasks that have predictions; the
    number of tasks stands in brackets.
    """
    columns = [["Run", "(examples)", *grades]]
    known = {run: record for run, record in records.items() if run in grades}
    if known:
        methods = dict(zip(known, _labels([record["settings"] for record in known.values()])))
        columns.append(["Method", "", *(methods.get(run, DASH) for run in grades)])
        kept = (_kept(known[run], grades[run]) if run in known else DASH for run in grades)
        columns.append(["Kept", "", *kept])
    for task in chosen:
        of_task = [of_run.get(task.name) for of_run in grades.values()]
        counts = [str(n) for n in sorted({len(found.scores) for found in of_task if found})]
        cells = [_cell(benchmark, found) if found else DASH for found in of_task]
        columns.append([task.title, "/".join(counts) or DASH, *cells])
    names = [task.name for task in chosen]
    averages: list[list[str]] = []
    for title, members in benchmark.averages.items():
        own = [name for name in names if name in members]
        if own and own not in averages and (averages or len(own) > 1):
            averages.append(own)
            cells = (_average(benchmark, of_run, own) for of_run in grades.values())
            columns.append([f"{title} (tasks)", "", *cells])
    averaged = {name for own in averages for name in own}
    left_out = [task.title for task in chosen if task.name not in averaged]
    note = f"Averages are over tasks of {benchmark.title} itself, so without {', '.join(left_out)}."
    return _markdown(columns) + (f"\n{note}" if averaged and left_out else "")


def _cell(benchmark: Benchmark, grades: Grades) -> str:
    return "/".join(benchmark.shown(figure) for figure in grades.figures.values())


def _labels(settings: list[dict[str, Any]]) -> list[str]:
    """Each run's method, and what tells it from other runs of the same method and ratio."""
    policies = [one["policy"] for one in settings]
    labels = label_variants(policies)
    alike = defaultdict(list)
    for index, (label, policy) in enumerate(zip(labels, policies)):
        alike[label, policy["keep_ratio"]].append(index)
    for members in alike.values():
        for say in (
            lambda one: one.get("model", ""),
            lambda one: f"seed {one['policy'].get('seed')}",
            lambda one: one.get("framework", "paddle"),
            lambda one: one.get("dtype", ""),
            lambda one: one.get("compress", ""),
            lambda one: "as one batch" if one.get("decode_together") else "one by one",
        ):
            said = {index: say(settings[index]) for index in members}
            if len(set(said.values())) > 1:
                for index, words in said.items():
                    labels[index] += f", {words}" if words else ""
    return labels


def _kept(record: dict[str, Any], grades: dict[str, Grades]) -> str:
    """The share of the cache that was kept; of several tasks the least and the most."""
    of_tasks = [of_task for name, of_task in record["tasks"].items() if name in grades]
    shares = sorted(  # not there yet while a run goes on
        t["cache_bytes"] / t["full_cache_bytes"] for t in of_tasks if "cache_bytes" in t
    )
    return "–".join(dict.fromkeys(f"{share:.1%}" for share in (*shares[:1], *shares[-1:]))) or DASH


def _average(benchmark: Benchmark, grades: dict[str, Grades], names: Iterable[str]) -> str:
    """The mean over tasks; a task of several figures counts with their mean."""
    scores = [mean(grades[name].figures.values()) for name in names if name in grades]
    return f"{benchmark.shown(mean(scores))} ({len(scores)})" if scores else DASH


def _markdown(columns: list[list[str]]) -> str:
    padded = []
    for column in columns:
        width = max(map(len, column))
        if column is columns[0]:
            ruler, cells = ":" + "-" * (width - 1), [cell.ljust(width) for cell in column]
        else:
            ruler, cells = "-" * (width - 1) + ":", [cell.rjust(width) for cell in column]
        padded.append([cells[0], ruler, *cells[1:]])
    return "\n".join("| " + " | ".join(row) + " |" for row in zip(*padded))


def _tasks_of(benchmark: Benchmark, runs: dict[str, Path]) -> list[Task]:
    return [
        task
        for task in benchmark.tasks.values()
        if any(_predictions(directory, task) for directory in runs.values())
    ]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    known = benchmarks.known()
    parser = Parser(description="Grade predictions and print a table of tasks and runs.")
    parser.add_argument(
        "--benchmark", help="of runs without run.json, and of published files: " + ", ".join(known)
    )
    parser.add_argument(
        "--task",
        help="names of tasks and groups joined by commas; "
        "by default every task that has predictions",
    )
    parser.add_argument("--output_dir", type=user_path, default=from_here(RESULTS))
    parser.add_argument(
        "--model_name", help="the run to grade, a directory of --output_dir; by default every one"
    )
    parser.add_argument(
        "--json", type=user_path, metavar="FILE", help="also write {run: {task: score}} to FILE"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
