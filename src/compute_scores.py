"""Grades predictions and prints tables: runs down, tasks across.

    python compute_scores.py --output_dir ../results                    every run
    python compute_scores.py --output_dir ../results --model_name RUN --task passkey --json s.json
    python compute_scores.py --output_dir DIR --benchmark longbench     published prediction files

A run is a directory with ``preds_<task>.jsonl`` files; where ``run.json`` lies beside them, it
gives the benchmark, the method and the share of the cache that was kept, and what others published
of the same setting stands below. With ``--benchmark`` files called ``<task>.jsonl`` count too. A
file that cannot be read or graded is named on stderr, the rest is graded all the same, and the exit
status is 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import benchmarks
from benchmarks import Benchmark, Task
from benchmarks.grading import grade
from benchmarks.longbench import with_code_similarity
from benchmarks.longbench_metrics import CODE_SIMILARITIES
from kvevict import files
from kvevict.command import Parser, command, fail, from_here, user_path
from kvevict.errors import InputError
from reporting.published import Published, beside
from reporting.score_table import GradesByRun, kept, table
from reporting.variants import label_variants

RESULTS = Path(__file__).resolve().parents[1] / "results"


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
            benchmark = with_code_similarity(benchmarks.get(name), args.code_similarity)
            chosen = benchmark.resolve(args.task) if args.task else _tasks_of(benchmark, own)
        except InputError as error:
            status = fail(error)
            continue
        grades, failed = _grade(benchmark, chosen, own)
        status = 2 if failed else status
        if len(of_benchmark) > 1:
            print(f"{chr(10) * (number > 0)}{benchmark.title}")
        print(table(benchmark, chosen, grades, records, _published(own, records, args)))
        if args.benchmark:
            _name_left_out(chosen if args.task else list(benchmark.tasks.values()), grades)
        for run, of_run in grades.items():
            scores[run] = {task: benchmark.published(g.figures) for task, g in of_run.items()}
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


def _published(
    runs: dict[str, Path], records: dict[str, dict[str, Any]], args: argparse.Namespace
) -> dict[str, Published]:
    """What was published of the setting of each run."""
    settings = {run: records[run]["settings"] for run in runs if run in records}
    graded = {"code_similarity": args.code_similarity}
    found = {run: beside({**own, **graded}) for run, own in settings.items()}
    return {run: one for run, one in found.items() if one}


def _name_left_out(asked: list[Task], grades: GradesByRun) -> None:
    graded = {name for of_run in grades.values() for name in of_run}
    left_out = [task.name for task in asked if task.name not in graded]
    if left_out:
        print(f"note: left out, without predictions: {', '.join(left_out)}", file=sys.stderr)


def _predictions(directory: Path, task: Task) -> Path | None:
    """The predictions of a task: our file, or one named as published; None for neither."""
    paths = (directory / name for name in _file_names(task))
    return next((path for path in paths if path.exists()), None)


def _file_names(task: Task) -> tuple[str, ...]:
    return f"preds_{task.name}.jsonl", task.file, f"{task.name}.jsonl"


def find_runs(
    output_dir: Path, model_name: str | None = None, benchmark: Benchmark | None = None
) -> dict[str, Path]:
    """The run directories below ``output_dir`` by name, or only the one that is asked for.

    What is hidden, as an editor's copies are, is not looked at.

    Args:
        benchmark: where directories count too that have files named after its tasks alone.

    Raises:
        InputError: there is none.
    """
    if not output_dir.is_dir():
        raise InputError(f"there is no output directory {output_dir}")
    names = {"preds_*.jsonl"}
    if benchmark:
        names.update(name for task in benchmark.tasks.values() for name in _file_names(task))
    linked = [path for path in output_dir.iterdir() if path.is_symlink() and path.is_dir()]
    files = [
        path.relative_to(output_dir)
        for name in names
        for folder in (output_dir, *linked)  # links are not followed further down
        for path in folder.rglob(name)
    ]
    found = {path.parent for path in files if not any(part[0] == "." for part in path.parts)}
    runs = {directory.as_posix(): output_dir / directory for directory in sorted(found)}
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
        kept(record, dict.fromkeys(record["tasks"]))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        raise InputError(f"{path} is not the record of a run") from None
    return record


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
    parser.add_argument(
        "--code_similarity",
        choices=CODE_SIMILARITIES,
        default=CODE_SIMILARITIES[0],
        help="what measures code in LongBench (default: %(default)s); papers differ in it",
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
