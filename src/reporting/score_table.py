"""The table of scores: runs down, tasks and their averages across."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import mean
from typing import Any

from benchmarks import Benchmark, Task
from benchmarks.benchmark import Figures
from benchmarks.grading import Grades
from reporting.variants import label_variants

DASH = "-"

#: Grades by task name, for each run by name.
GradesByRun = dict[str, dict[str, Grades]]


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
        shares = (kept(known[run], grades[run]) if run in known else DASH for run in grades)
        columns.append(["Kept", "", *shares])
    for task in chosen:
        of_task = [of_run.get(task.name) for of_run in grades.values()]
        counts = [str(n) for n in sorted({len(found.scores) for found in of_task if found})]
        cells = [benchmark.shown(found.figures) if found else DASH for found in of_task]
        columns.append([_title(task.title, of_task), "/".join(counts) or DASH, *cells])
    averages = _averages(benchmark, [task.name for task in chosen])
    for title, names in averages.items():
        cells = (_average(benchmark, of_run, names) for of_run in grades.values())
        columns.append([f"{title} (tasks)", "", *cells])
    averaged = {name for names in benchmark.averages.values() for name in names}
    left_out = [task.title for task in chosen if task.name not in averaged]
    graded = {name for of_run in grades.values() for name in of_run}
    notes = dict.fromkeys(task.note for task in chosen if task.note and task.name in graded)
    if averages and left_out:
        without = ", ".join(left_out)
        notes[f"Averages are over tasks of {benchmark.title} itself, so without {without}."] = None
    return "\n".join([_markdown(columns), *notes])


def _title(title: str, of_runs: Iterable[Grades | None]) -> str:
    """The heading of a task's column; it names the figures where there are several."""
    names = next((list(found.figures) for found in of_runs if found), [""])
    return f"{title} {'/'.join(names)}".rstrip()


def _labels(settings: list[dict[str, Any]]) -> list[str]:
    """Each run's method, and what tells it from other runs of the same method and ratio."""
    policies = [one["policy"] for one in settings]
    labels = [a + b for a, b in zip(label_variants(policies), map(_made_to, settings))]
    alike = defaultdict(list)
    for index, (label, policy) in enumerate(zip(labels, policies)):
        alike[label, policy["keep_ratio"], policy.get("budget")].append(index)
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


def _made_to(settings: dict[str, Any]) -> str:
    """Of data made to a length, that length, and whether the question was known to the eviction."""
    if "length" not in settings:
        return ""
    seen = "unseen" if settings.get("compress") == "context" else "seen"
    return f", {settings['length']} tokens, question {seen}"


def kept(record: dict[str, Any], grades: dict[str, Grades]) -> str:
    """The share of the cache that was kept; of several tasks the least and the most."""
    of_tasks = [of_task for name, of_task in record["tasks"].items() if name in grades]
    shares = sorted(  # not there yet while a run goes on
        t["cache_bytes"] / t["full_cache_bytes"] for t in of_tasks if "cache_bytes" in t
    )
    return "–".join(dict.fromkeys(f"{share:.1%}" for share in (*shares[:1], *shares[-1:]))) or DASH


def _averages(benchmark: Benchmark, chosen: list[str]) -> dict[str, list[str]]:
    """Titles of averages and the tasks that they are over; none where they would repeat scores."""
    found: dict[str, list[str]] = {}
    for title, members in benchmark.averages.items():
        names = [name for name in chosen if name in members]
        if names and names not in found.values():
            found[title] = names
    return found if any(len(names) > 1 for names in found.values()) else {}


def _average(benchmark: Benchmark, grades: dict[str, Grades], names: Iterable[str]) -> str:
    """The means over tasks of their figures, and how many tasks there were."""
    of_tasks = [grades[name].figures for name in names if name in grades]
    if not of_tasks:
        return DASH
    means: Figures = {}
    for name in of_tasks[0]:
        there = [figures[name] for figures in of_tasks if figures[name] is not None]
        means[name] = mean(there) if there else None
    return f"{benchmark.shown(means)} ({len(of_tasks)})"


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
