"""The tables: what was scored, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

import benchmarks
from benchmarks import Benchmark
from benchmarks.benchmark import mean_score
from reporting.intervals import Estimate, average
from reporting.pool import Cell, settings_of, task_names
from reporting.published import Published
from reporting.score_table import THEIRS, averages_over
from reporting.style import amount, display

DASH = "–"
HOW = (
    "Scores are means over examples, from 0 to 1, with their 95% confidence interval in brackets: "
    "Wilson's score interval, for as many scores of 0 or 1 as would vary as much. The seeds of "
    "methods that draw are pooled, each example by its mean. Examples with the same id in several "
    "files of a task are one cluster, not independent ones. The interval of a mean over tasks is "
    "recovered from those of the tasks (MOVER)."
)


@dataclass(frozen=True)
class Table:
    """Rows of text below a header; ``notes`` are sentences below the table."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]

    def markdown(self) -> str:
        """Aligned, the first two columns to the left and numbers to the right."""
        cells = [self.header, *self.rows]
        cells = [[cell.replace("|", "\\|") for cell in row] for row in cells]
        widths = [max(map(len, column)) for column in zip(*cells)]
        ruler = [":" + "-" * (widths[0] - 1)] + ["-" * (width - 1) + ":" for width in widths[1:]]
        lines = []
        for row in [cells[0], ruler, *cells[1:]]:
            padded = [row[0].ljust(widths[0])]
            padded += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
            lines.append("| " + " | ".join(padded) + " |")
        notes = [note.replace("*", "\\*") for note in self.notes]
        return "\n".join([f"**{self.title}**", "", *lines, *(f"\n{note}" for note in notes)])


def score_table(cells: list[Cell], length: str = "", benchmark: Benchmark | None = None) -> Table:
    """Methods and keep ratios down, tasks and their mean across.

    Args:
        benchmark: whose averages over some of the tasks have columns, too, and on whose scale
            published scores are: they stand below ours.
    """
    names = task_names(cells)
    groups = _groups(benchmark, names)
    header = ["Method", "Kept", *(benchmarks.tasks()[name].title for name in names)]
    header += [f"{title} ({len(members)})" for title, members in groups.items() if title != "Mean"]
    rows, notes = [], _notes(cells)
    for method, ratio in settings_of(cells):
        own = {c.task: c for c in cells if (c.method, c.keep) == (method, ratio)}
        scores = [score_cell(own[name].score if name in own else None) for name in names]
        scores += [score_cell(_mean(own, members)) for members in groups.values()]
        rows.append([display(method), amount(ratio), *scores])
        published = next(iter(own.values())).published
        theirs = _theirs(published, benchmark, list(own), names, groups) if published else []
        if any(theirs):
            rows.append([THEIRS, "", *(cell or DASH for cell in theirs)])
            notes.append(f"Published by {published.source}; over all examples of a task.")
    if benchmark and benchmark.summarise is not mean_score:
        notes.append(
            f"{benchmark.title} has several figures for a task, which compute_scores.py prints; "
            "here is the mean over all examples."
        )
    header += ["Mean"] * ("Mean" in groups)
    return Table(titled("Score", length), header, rows, list(dict.fromkeys(notes)))


def _groups(benchmark: Benchmark | None, names: list[str]) -> dict[str, list[str]]:
    """Titles of averages, and the tasks that they are over; that over all of them the last."""
    found = averages_over(benchmark, names) if benchmark else {}
    some = {title: members for title, members in found.items() if 1 < len(members) < len(names)}
    return {**some, **({"Mean": names} if len(names) > 1 else {})}


def _mean(own: dict[str, Cell], names: list[str]) -> Estimate | None:
    """The mean over tasks; None where one is missing."""
    return average([own[name].score for name in names]) if own.keys() >= set(names) else None


def _theirs(
    published: Published,
    benchmark: Benchmark,
    graded: list[str],
    names: list[str],
    groups: dict[str, list[str]],
) -> list[str]:
    """A row of published scores, from 0 to 1; empty where none is, or none of ours is."""
    scores = [published.scores.get(name) if name in graded else None for name in names]
    of_tasks = {frozenset(each.tasks): each.score for each in published.averages.values()}
    scores += [
        of_tasks.get(frozenset(members)) if set(graded) >= set(members) else None
        for members in groups.values()
    ]
    return ["" if score is None else f"{score / benchmark.scale:.3f}" for score in scores]


def cost_table(cells: list[Cell], length: str = "") -> Table:
    """Methods and keep ratios down; cache, prefill and decoding across, means over tasks."""
    shared, batched = False, any(cell.decoded_together for cell in cells)
    rows = []
    for method, ratio in settings_of(cells):
        own = [cell for cell in cells if (cell.method, cell.keep) == (method, ratio)]
        held = mean(cell.cache_bytes for cell in own)
        full = mean(cell.full_cache_bytes for cell in own)
        seconds = f"{mean(cell.prefill_seconds for cell in own):.2f}"
        if any(cell.prefill_shared_by > 1 for cell in own):
            shared, seconds = True, seconds + " *"
        rows.append(
            [
                display(method),
                amount(ratio),
                f"{held / 2**20:.1f}",
                f"{held / full:.1%}",
                seconds,
                "–" if batched else f"{mean(cell.ms_per_token for cell in own):.1f}",
            ]
        )
    header = [
        "Method",
        "Kept",
        "Cache after prefill, MiB",
        "Of the full cache",
        "Prefill, s",
        "ms per token",
    ]
    notes = ["* One prefill served several settings; its whole time stands at each."] * shared
    if batched:
        notes.append("– Decoded as one batch with other settings, whose time is of none alone.")
    return Table(titled("Cost", length), header, rows, notes)


def _notes(cells: list[Cell]) -> list[str]:
    notes = []
    for name in task_names(cells):
        counts = sorted({cell.examples for cell in cells if cell.task == name})
        if len(counts) > 1:
            notes.append(
                f"{benchmarks.tasks()[name].title}: the rows are of {counts[0]} to {counts[-1]} "
                "examples, so they do not compare exactly."
            )
    if any(_left_whole(cell) for cell in cells):
        notes.append(
            "Some prompts were left whole: they are no longer than min_eviction_seqlen. "
            "The cost table has what was really kept."
        )
    counts = sorted({cell.examples for cell in cells})
    seeds = max(cell.seeds for cell in cells)
    tokens = _range(sorted({round(cell.tokens) for cell in cells}))
    plural = "" if counts == [1] else "s"
    head = f"{_range(counts)} example{plural} a task, {tokens} prompt tokens (median)"
    head += (f", up to {seeds} seeds" if seeds > 1 else "") + "."
    return [head, *notes]


def _left_whole(cell: Cell) -> bool:
    return cell.keep < 1 and cell.cache_bytes > 1.1 * cell.keep * cell.full_cache_bytes


def titled(title: str, length: str) -> str:
    """A title that says the length of the prompts where there are several."""
    return f"{title} at {length} tokens" if length else title


def _range(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def score_cell(score: Estimate | None) -> str:
    """A score with its interval; a dash where there is none."""
    if score is None:
        return DASH
    return f"{score.mean:.3f} [{score.low:.2f}, {score.high:.2f}]"
