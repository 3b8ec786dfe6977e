"""Grades predictions on ∞Bench and prints a table: runs down, tasks across.

    python compute_scores.py --output_dir ../results                    every run
    python compute_scores.py --output_dir ../results --model_name RUN --task passkey --json s.json

A run is a directory with ``preds_<task>.jsonl`` files; where ``run.json`` lies beside them, it
gives the method and the share of the cache that was kept. A file that cannot be read or graded is
named on stderr, the rest is graded all the same, and the exit status is 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import benchmarks
from kvevict.errors import InputError
from reporting.variants import label_variants

DASH = "-"
KV = "kv_retrieval"

#: Grades by task name, for each run by name.
Grades = dict[str, dict[str, benchmarks.Grade]]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = _arguments(argv)
    try:
        runs = find_runs(args.output_dir, args.model_name)
        chosen = benchmarks.resolve(args.task) if args.task else _tasks_of(runs.values())
    except InputError as error:
        return _fail(error)
    grades: Grades = {}
    records = {}
    status = 0
    for run, directory in runs.items():
        grades[run] = {}
        try:
            if (directory / "run.json").exists():
                records[run] = read_record(directory / "run.json")
        except InputError as error:
            status = _fail(error)
        for task in chosen:
            path = directory / f"preds_{task.name}.jsonl"
            try:
                if path.exists():
                    grades[run][task.name] = benchmarks.grade(path, task, run)
            except InputError as error:
                status = _fail(error)
    print(table(chosen, grades, records))
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


def table(chosen: list[benchmarks.Task], grades: Grades, records: dict[str, dict[str, Any]]) -> str:
    """The grades as an aligned Markdown table, with methods and what they kept from ``records``.

    The averages are those of NACL's release: over its tasks of ∞Bench, with and without
    Retrieve.KV, as far as they have predictions; the number of tasks stands in brackets.
    """
    columns = [["Run", "(examples)", *grades]]
    if records:
        methods = dict(zip(records, _labels([record["settings"] for record in records.values()])))
        columns.append(["Method", "", *(methods.get(run, DASH) for run in grades)])
        kept = (_kept(records[run], grades[run]) if run in records else DASH for run in grades)
        columns.append(["Kept", "", *kept])
    for task in chosen:
        of_task = [of_run.get(task.name) for of_run in grades.values()]
        counts = [str(n) for n in sorted({grade.examples for grade in of_task if grade})]
        cells = [f"{grade.score:.4f}" if grade else DASH for grade in of_task]
        columns.append([task.table_name, "/".join(counts) or DASH, *cells])
    released = [task.name for task in chosen if task.name in benchmarks.RELEASE_TASKS]
    averages = {}
    if len(released) > 1:
        averages["∞Bench average (tasks)"] = released
        if KV in released:
            averages["without KV (tasks)"] = [name for name in released if name != KV]
    for title, names in averages.items():
        columns.append([title, "", *(_average(of_run, names) for of_run in grades.values())])
    left_out = [task.table_name for task in chosen if task.name not in released]
    note = f"The average is over the tasks of NACL's release, so without {', '.join(left_out)}."
    return _markdown(columns) + (f"\n{note}" if averages and left_out else "")


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


def _kept(record: dict[str, Any], grades: dict[str, benchmarks.Grade]) -> str:
    """The share of the cache that was kept; of several tasks the least and the most."""
    of_tasks = [of_task for name, of_task in record["tasks"].items() if name in grades]
    shares = sorted(  # not there yet while a run goes on
        t["cache_bytes"] / t["full_cache_bytes"] for t in of_tasks if "cache_bytes" in t
    )
    return "–".join(dict.fromkeys(f"{share:.1%}" for share in (*shares[:1], *shares[-1:]))) or DASH


def _average(grades: dict[str, benchmarks.Grade], names: Iterable[str]) -> str:
    scores = [grades[name].score for name in names if name in grades]
    return f"{sum(scores) / len(scores):.4f} ({len(scores)})" if scores else DASH


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


def _tasks_of(directories: Iterable[Path]) -> list[benchmarks.Task]:
    directories = list(directories)
    return [
        task
        for task in benchmarks.TASKS.values()
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
