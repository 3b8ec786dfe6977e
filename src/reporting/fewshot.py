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


def table(
    model: str, policies: list[dict[str, Any]], shots: int, of_task: Mapping[str, Any]
) -> Table:
    """The table of one number of shots.

    Args:
        model: its name.
        policies: the rows, as runs record them.
        shots: examples before the question.
        of_task: by task, for each policy whether each example was answered right (``correct``) and
            what was kept of the prompts (``kept``).
    """
    rows, sources = [], {}
    for number, (policy, label) in enumerate(zip(policies, label_variants(policies))):
        scores = [estimate(r["correct"][number], r["ids"]) for r in of_task.values()]
        kept = [record["kept"][number] for record in of_task.values()]
        share = sum(one["kept"] for one in kept) / sum(one["entries"] for one in kept)
        mean = score_cell(average(scores)) if len(scores) > 1 else DASH
        rows.append([display(label), f"{share:.1%}", *map(score_cell, scores), mean])
        found = beside({"benchmark": "lm_eval", "model": model, "shots": shots, "policy": policy})
        theirs = found.averages.get("Mean") if found else None
        if theirs and set(theirs.tasks) == set(of_task):
            rows.append([THEIRS, "", *[DASH] * len(scores), f"{theirs.score / 100:.3f}"])
            sources[f"Published by {found.source}; over all examples of a task."] = None
    counts = sorted({len(record["ids"]) for record in of_task.values()})
    counted = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    header = ["Method", "Kept", *of_task, "Mean"]
    notes = [f"{counted} examples a task.", *sources]
    return Table(f"Accuracy, {shots} shots", header, rows, notes)
