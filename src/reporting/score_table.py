"""The table of scores: runs down, tasks and their averages across, published ones beside ours."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from statistics import mean
from types import MappingProxyType
from typing import Any

from benchmarks import Benchmark, Task
from benchmarks.benchmark import Figures
from benchmarks.grading import Grades
from kvevict.methods.registry import evicts
from reporting.published import Published
from reporting.variants import label_variants

DASH = "-"
THEIRS = "↳ published"

#: Grades by task name, for each run by name.
GradesByRun = dict[str, dict[str, Grades]]
#: Of a column, by run.
Cells = Mapping[str, str]


def table(
    benchmark: Benchmark,
    chosen: list[Task],
    grades: GradesByRun,
    records: dict[str, dict[str, Any]],
    published: Mapping[str, Published] = MappingProxyType({}),
) -> str:
    """The grades as an aligned Markdown table, with methods and what they kept from ``records``.

    The averages are the benchmark's own, over those of their tasks that have predictions; the
    number of tasks stands in brackets. Below a run is what was published of its setting.
    """
    others = {run: _shared(one, grades[run]) for run, one in published.items() if run in grades}
    others = {run: one for run, one in others.items() if one.scores or one.averages}

    def column(title: str, count: str, own: Cells, theirs: Cells) -> list[str]:
        cells = []
        for run in grades:
            cells.append(own.get(run, DASH))
            cells += [theirs.get(run, DASH)] * (run in others)
        return [title, count, *cells]

    columns = [column("Run", "(examples)", {r: r for r in grades}, dict.fromkeys(others, THEIRS))]
    known = {run: record for run, record in records.items() if run in grades}
    if known:
        methods = dict(zip(known, _labels([record["settings"] for record in known.values()])))
        columns.append(column("Method", "", methods, methods))
        shares = {run: kept(known[run], grades[run]) for run in known}
        columns.append(column("Kept", "", shares, {}))
    for task in chosen:
        of_task = {run: own[task.name] for run, own in grades.items() if task.name in own}
        counts = [str(n) for n in sorted({len(found.scores) for found in of_task.values()})]
        own = {run: benchmark.shown(found.figures) for run, found in of_task.items()}
        theirs = {r: one.scores[task.name] for r, one in others.items() if task.name in one.scores}
        title = _title(task.title, of_task.values())
        columns.append(column(title, "/".join(counts) or DASH, own, _on_scale(benchmark, theirs)))
    averages = averages_over(benchmark, [task.name for task in chosen])
    for one in others.values():
        averages.update({title: list(each.tasks) for title, each in one.averages.items()})
    for title, names in averages.items():
        own = {run: _average(benchmark, of_run, names) for run, of_run in grades.items()}
        theirs = {r: o.averages[title].score for r, o in others.items() if title in o.averages}
        columns.append(column(f"{title} (tasks)", "", own, _on_scale(benchmark, theirs)))
    notes = _notes(benchmark, chosen, grades, bool(averages), others)
    notes += (_left_whole(run, record, grades[run]) for run, record in known.items())
    return "\n".join([_markdown(columns), *filter(None, notes)])


def _notes(
    benchmark: Benchmark,
    chosen: list[Task],
    grades: GradesByRun,
    averaged: bool,
    others: Mapping[str, Published],
) -> list[str]:
    """The sentences below the table."""
    graded = {name for of_run in grades.values() for name in of_run}
    notes = [task.note for task in chosen if task.note and task.name in graded]
    in_one = {name for names in benchmark.averages.values() for name in names}
    left_out = [task.title for task in chosen if task.name not in in_one]
    if averaged and left_out:
        without = ", ".join(left_out)
        notes.append(f"Averages are over tasks of {benchmark.title} itself, so without {without}.")
    notes += [f"Published by {one.source}." for one in others.values()]
    if any(
        len(grades[run][name].scores) != benchmark.tasks[name].examples
        for run, one in others.items()
        for name in one.scores
    ):
        notes.append("What is published is over all examples of a task, ours over those counted.")
    return list(dict.fromkeys(notes))


def _shared(one: Published, grades: dict[str, Grades]) -> Published:
    """What of the published scores has one of ours beside it; averages where all tasks have."""
    return replace(
        one,
        scores={name: score for name, score in one.scores.items() if name in grades},
        averages={
            title: each for title, each in one.averages.items() if grades.keys() >= set(each.tasks)
        },
    )


def _on_scale(benchmark: Benchmark, scores: Mapping[str, float]) -> Cells:
    """Published scores as the benchmark's table has its own."""
    digits = 4 if benchmark.decimals is None else benchmark.decimals
    return {run: f"{score:.{digits}f}" for run, score in scores.items()}


def _title(title: str, of_runs: Iterable[Grades]) -> str:
    """The heading of a task's column; it names the figures where there are several."""
    names = next((list(found.figures) for found in of_runs), [""])
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


def _left_whole(run: str, record: dict[str, Any], grades: dict[str, Grades]) -> str:
    """How many prompts of a run that evicts were left whole, as a sentence; nothing for none."""
    own = [of_task for name, of_task in record["tasks"].items() if name in grades]
    count = sum(of_task.get("left_whole", 0) for of_task in own)
    if not count or not evicts(record["settings"]["policy"]):
        return ""
    prompts = sum(of_task.get("examples", 0) for of_task in own)
    return f"{run}: {count} of {prompts} prompts were left whole."


def averages_over(benchmark: Benchmark, chosen: list[str]) -> dict[str, list[str]]:
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
