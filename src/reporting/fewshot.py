"""The tables of scripts/fewshot.py: accuracies on short tasks, methods down and tasks across."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reporting.intervals import average, estimate
from reporting.published import beside
from reporting.score_table import THEIRS
from reporting.style import display
from reporting.tables import DASH, Table, score_cell
from reporting.variants import label_variants

Examples = Mapping[int, Mapping[str, Any]]


def table(
    model: str, policies: list[dict[str, Any]], shots: int, of_task: Mapping[str, Examples]
) -> Table:
    """The table of one number of shots.

    Args:
        model: its name.
        policies: the rows, as runs record them.
        shots: examples before the question.
        of_task: by task and example, for each policy whether it was answered right (``correct``)
            and how many entries were kept of how many (``kept``).
    """
    rows, sources = [], {}
    for number, (policy, label) in enumerate(zip(policies, label_variants(policies))):
        scores = [
            estimate([line["correct"][number] for line in lines.values()], list(lines))
            for lines in of_task.values()
        ]
        counts = [line["kept"][number] for lines in of_task.values() for line in lines.values()]
        kept, entries = map(sum, zip(*counts))
        share = kept / entries
        mean = score_cell(average(scores)) if len(scores) > 1 else DASH
        rows.append([display(label), f"{share:.1%}", *map(score_cell, scores), mean])
        found = beside({"benchmark": "lm_eval", "model": model, "shots": shots, "policy": policy})
        theirs = found.averages.get("Mean") if found else None
        if theirs and set(theirs.tasks) == set(of_task):
            rows.append([THEIRS, "", *[DASH] * len(scores), f"{theirs.score / 100:.3f}"])
            sources[f"Published by {found.source}; over all examples of a task."] = None
    counted = [f"{name} {len(lines)}" for name, lines in of_task.items()]
    header = ["Method", "Kept", *of_task, "Mean"]
    notes = [f"Examples: {', '.join(counted)}.", *sources]
    return Table(f"Accuracy, {shots} shots", header, rows, notes)
