"""From the results of single runs to what a table or figure shows: seeds and runs pooled.

A *cell* is one method at one budget on one task and length. Its score is the mean over examples
of each example's mean over seeds, with a 95% confidence interval. Examples with the same id in
several files, such as those of several lengths, are one cluster of it (see ``intervals``).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import benchmarks
from benchmarks import Benchmark
from benchmarks.longbench_metrics import CODE_SIMILARITIES
from reporting.intervals import Estimate, average, estimate
from reporting.load import Result, keep_of
from reporting.published import Published, beside
from reporting.records import benchmark_of
from reporting.style import FULL, base, rank
from reporting.variants import label_variants

PROMPT, CONTEXT = "question in the prompt", "context compressed before the question is known"


@dataclass(frozen=True)
class Cell:
    """One method at one budget on one task and length.

    Attributes:
        method: how it is labelled; ``full`` is the full cache.
        keep: as asked for: a share of the cache, or entries of each kv head where above 1.
        length: of the prompts, as in ``4K``; empty where each task has one length only.
        tokens: median length of the prompts.
        score: over ``examples``, seeds pooled.
        points: depth of the answer and score of each example whose depth is known.
        cache_bytes, full_cache_bytes, prefill_seconds, ms_per_token: means.
        prefill_shared_by: settings that the prefills served.
        decoded_together: whether the settings of a prompt were decoded as one batch.
        published: what others have of the same setting.
        nll: of the reference answer, the mean over examples that it was noted of; None for none.
    """

    method: str
    keep: float
    task: str
    length: str
    tokens: float
    score: Estimate
    examples: int
    seeds: int
    points: tuple[tuple[float, float], ...]
    cache_bytes: float
    full_cache_bytes: float
    prefill_seconds: float
    prefill_shared_by: int
    decoded_together: bool
    ms_per_token: float
    published: Published | None = None
    nll: float | None = None


@dataclass(frozen=True)
class Group:
    """All that compares: the cells of one model in one mode.

    Attributes:
        benchmark: of its tasks; None for cells put together by hand.
    """

    title: str
    cells: tuple[Cell, ...]
    benchmark: Benchmark | None = None

    def parts(self) -> list[tuple[str, list[Cell]]]:
        """The cells by length, shortest first, with the length's name."""
        lengths: dict[str, list[Cell]] = defaultdict(list)
        for cell in sorted(self.cells, key=lambda cell: cell.tokens):
            lengths[cell.length].append(cell)
        return list(lengths.items())


def pool(results: list[Result], by_length: bool = True) -> list[Group]:
    """Groups of cells, in the order of their titles; lengths apart or pooled."""
    labels = label_variants([result.settings["policy"] for result in results])
    groups: dict[str, list[tuple[Result, str]]] = defaultdict(list)
    for result, label in zip(results, labels):
        setting = {k: v for k, v in result.settings.items() if k != "policy"}
        for kind in _kinds(result, results):
            groups[json.dumps({**setting, **kind}, sort_keys=True)].append((result, label))
    settings = [json.loads(key) for key in groups]
    made = [
        Group(title, _cells(members, by_length), benchmark_of(own))
        for title, own, members in zip(_titles(settings), settings, groups.values())
    ]
    return sorted(made, key=lambda group: group.title)


def _kinds(result: Result, results: list[Result]) -> list[dict[str, str]]:
    """Budgets in entries and in shares do not compare: each has the full cache beside it."""
    kinds = {keep_of(other) > 1 for other in results if keep_of(other) != 1}
    if len(kinds) < 2:
        return [{}]
    own = kinds if keep_of(result) == 1 else {keep_of(result) > 1}
    return [{"budgets": "in entries" if entries else "in shares"} for entries in sorted(own)]


def _titles(settings: list[dict[str, Any]]) -> list[str]:
    """Model and mode, and what else tells two groups apart."""
    settings = [{"framework": "paddle", "decode_together": False, **one} for one in settings]
    varying = [
        key
        for key in dict.fromkeys(key for one in settings for key in one)
        if key not in ("model", "compress") and len({repr(one.get(key)) for one in settings}) > 1
    ]
    modes = {"prompt": PROMPT, "context": CONTEXT}
    return [
        ", ".join(
            [one["model"], modes.get(one["compress"], one["compress"])]
            + [words for key in varying if (words := _words(key, one.get(key)))]
        )
        for one in settings
    ]


def _words(key: str, value: Any) -> str:
    if key == "decode_together":
        return "decoded as one batch" if value else ""
    if key in ("framework", "dtype", "device"):
        return str(value or "")
    return f"{key} {value}"


def _cells(members: list[tuple[Result, str]], by_length: bool) -> tuple[Cell, ...]:
    lengths = _lengths([result for result, _ in members]) if by_length else {}
    cells: dict[tuple, list[Result]] = defaultdict(list)
    for result, label in members:
        ratio = keep_of(result)
        length = lengths.get((result.task, result.data), "")
        cells[label, ratio, result.task, length].append(result)
    return tuple(_cell(*key, results) for key, results in cells.items())


def _lengths(results: list[Result]) -> dict[tuple[str, str], str]:
    """What to call the length of each task's data; nothing where no task has several."""
    tokens: dict[tuple[str, str], list[int]] = defaultdict(list)
    for result in results:
        tokens[result.task, result.data] += result.known_tokens
    names = {key: length_name(median(counts)) for key, counts in tokens.items()}
    of_task: dict[str, set[str]] = defaultdict(set)
    for (task, _), name in names.items():
        of_task[task].add(name)
    several = any(len(different) > 1 for different in of_task.values())
    return {key: name if several else "" for key, name in names.items()}


def length_name(tokens: float) -> str:
    """``4K`` for 4,090 tokens, ``1.5K`` for 1,500: K is 1,024, to one decimal."""
    return f"{tokens / 1024:.1f}".removesuffix(".0") + "K" if tokens >= 512 else f"{tokens:.0f}"


def _cell(method: str, ratio: float, task: str, length: str, results: list[Result]) -> Cell:
    scores: dict[tuple[str, int], list[float]] = defaultdict(list)
    depths: dict[tuple[str, int], float | None] = {}
    for result in results:
        for at, (i, score) in enumerate(zip(result.ids, result.scores)):
            scores[result.data, i].append(score)
            depths[result.data, i] = result.depths[at] if result.depths else None
    nlls = [one for result in results for one in result.nll or () if one is not None]
    means = {key: mean(values) for key, values in scores.items()}
    return Cell(
        method,
        ratio,
        task,
        length,
        tokens=median(tokens for result in results for tokens in result.known_tokens),
        score=estimate(list(means.values()), [i for _, i in means]),
        examples=len(means),
        seeds=len({result.settings["policy"].get("seed") for result in results}),
        points=tuple((at, means[key]) for key, at in depths.items() if at is not None),
        cache_bytes=mean(result.cache_bytes for result in results),
        full_cache_bytes=mean(result.full_cache_bytes for result in results),
        prefill_seconds=mean(result.prefill_seconds for result in results),
        prefill_shared_by=max(result.prefill_shared_by for result in results),
        decoded_together=any(result.settings.get("decode_together") for result in results),
        ms_per_token=mean(result.ms_per_token for result in results),
        published=beside({**results[0].settings, "code_similarity": CODE_SIMILARITIES[0]}),
        nll=mean(nlls) if nlls else None,
    )


def overall(cells: list[Cell], method: str, ratio: float) -> Estimate | None:
    """A method's mean over all tasks of ``cells``; None where one is missing."""
    own = [cell.score for cell in cells if (cell.method, cell.keep) == (method, ratio)]
    return average(own) if len(own) == len(task_names(cells)) else None


def plain(cells: Sequence[Cell]) -> list[Cell]:
    """The cells of one form of each method: the plain one or, where there is none, the first."""
    drawn: dict[str, str] = {}
    for method, _ in settings_of(cells):
        drawn.setdefault(base(method), method)
    return [cell for cell in cells if cell.method in drawn.values()]


def task_names(cells: Sequence[Cell]) -> list[str]:
    """The tasks of ``cells`` in the benchmark's order."""
    present = {cell.task for cell in cells}
    return [name for name in benchmarks.tasks() if name in present]


def settings_of(cells: Sequence[Cell]) -> list[tuple[str, float]]:
    """Methods and budgets in the order of a table: the full cache first, budgets falling."""
    present = {(cell.method, cell.keep) for cell in cells}
    return sorted(present, key=lambda setting: (rank(setting[0]), -setting[1]))


def ratios_of(cells: Sequence[Cell]) -> list[float]:
    """Budgets, rising; 1 alone where there is only the full cache."""
    return sorted({cell.keep for cell in cells if cell.method != FULL}) or [1.0]
