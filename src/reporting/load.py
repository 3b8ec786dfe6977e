"""Results on disk: run directories, and one small file that holds the scores of many."""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import mean
from typing import Any

import benchmarks
from benchmarks import Example, Task
from benchmarks.examples import read_file
from benchmarks.grading import grade
from kvevict import files
from kvevict.errors import InputError
from kvevict.files import file_sha256
from reporting.records import Record, read_lines, read_records

LATER = ("nll", "made")  # which files of before do not have
MEANS = ("cache_bytes", "full_cache_bytes", "prefill_seconds", "ms_per_token")


@dataclass(frozen=True)
class Result:
    """One task of one run.

    Attributes:
        settings: what determined the predictions, as in run.json but for the model's path.
        task: its name.
        data: SHA-256 of the file that the examples came from.
        ids, scores, prompt_tokens: of each example; scores from 0 to 1; tokens None where their
            number is lost.
        depths: where in its context each example's answer stands, 0 to 1; None where it does not
            stand there, and altogether where the data were not at hand.
        cache_bytes, full_cache_bytes, prefill_seconds, ms_per_token: means.
        prefill_shared_by: settings that the prefills served.
        nll: of each example, see ``--nll`` of eval_llama3.py, None where it was not noted; None
            altogether where it never was.
        made: versions and digests, see :class:`~reporting.records.Record`; of the first of several
            runs.
    """

    settings: dict[str, Any]
    task: str
    data: str
    ids: list[int]
    scores: list[float]
    prompt_tokens: list[int | None]
    depths: list[float | None] | None
    cache_bytes: float
    full_cache_bytes: float
    prefill_seconds: float
    prefill_shared_by: int
    ms_per_token: float
    nll: list[float | None] | None = None
    made: dict[str, Any] | None = None

    @property
    def known_tokens(self) -> list[int]:
        """Prompt lengths of the examples that have statistics."""
        return [tokens for tokens in self.prompt_tokens if tokens is not None]


def keep_of(result: Result) -> float:
    """How much the policy was to keep: a share of the cache, or entries of a head where above 1."""
    policy = result.settings["policy"]
    return policy.get("budget") or policy["keep_ratio"]


def read_runs(output_dir: Path, data_dir: Path | None = None) -> list[Result]:
    """The results of every run below ``output_dir``, graded.

    Runs that differ in their examples only, or in where they lie, count as one.

    Args:
        data_dir: where to look for the examples, at any depth; gives their ``depths``.

    Raises:
        InputError: there are no runs, none has results, or a file is broken.
    """
    records = list(read_records(output_dir))
    depths = _Depths(data_dir)
    results = [result for record in records for result in _read_run(record, depths)]
    if not results:
        raise InputError(f"the runs below {output_dir} have no predictions yet")
    parts: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        key = json.dumps([result.settings, result.task, result.data], sort_keys=True)
        parts[key].append(result)
    return [_joined(own) for own in parts.values()]


def write_scores(path: Path, results: list[Result]) -> None:
    """Keep what a report is made of: one line of JSON a run and task, compressed."""
    lines = ""
    for result in results:
        row = asdict(result)
        row = {key: value for key, value in row.items() if key not in LATER or value is not None}
        lines += json.dumps(row) + "\n"
    files.write(path, gzip.compress(lines.encode(), mtime=0))


def read_scores(path: Path) -> list[Result]:
    """What :func:`write_scores` wrote.

    Raises:
        InputError: the file cannot be read or is another one.
    """
    results = []
    for number, row, _ in read_lines(path):
        known = {*row, *LATER} == {field.name for field in fields(Result)}
        if not known or row["task"] not in benchmarks.tasks():
            raise InputError(f"{path}, line {number}: not a line of the scores of a report")
        results.append(Result(**row))
    if not results:
        raise InputError(f"{path} has no scores")
    return results


def _read_run(record: Record, depths: _Depths) -> Iterator[Result]:
    for task, file in record.predictions():
        grades = grade(file, record.benchmark, task, record.name)
        scores = dict(zip(grades.ids, grades.scores))
        data = record.data[task.name]
        result = _result(record.settings, task, data, file, scores, depths)
        if result:
            yield replace(result, made=record.made or None)


def _result(
    settings: dict[str, Any],
    task: Task,
    data: str,
    file: Path,
    scores: dict[int, float],
    depths: _Depths,
) -> Result | None:
    """A task of a run; None where none of its examples has statistics."""
    file = file.with_name(f"stats_{task.name}.jsonl")
    try:
        stats = {row["id"]: row for _, row, _ in read_lines(file)}
        done = sorted(scores)
        rows = [stats[i] for i in done if i in stats]  # one may be lost with the machine
        if not rows:
            print(f"note: {file} has no statistics, and is left out", file=sys.stderr)
            return None
        steps = sum(row["decode_steps"] for row in rows)
        read = [row for row in rows if not row.get("context_reused")]  # that read the whole prompt
        of_example = depths.of(task, data)
        nll = [stats[i].get("nll") if i in stats else None for i in done]
        return Result(
            settings,
            task.name,
            data,
            ids=done,
            scores=[_short(scores[i]) for i in done],
            prompt_tokens=[stats[i]["prompt_tokens"] if i in stats else None for i in done],
            depths=[of_example.get(i) for i in done] if of_example else None,
            cache_bytes=mean(row["cache_bytes"] for row in rows),
            full_cache_bytes=mean(row["full_cache_bytes"] for row in rows),
            prefill_seconds=mean(row["prefill_seconds"] for row in read or rows),
            prefill_shared_by=max(row["policies"] for row in rows),
            ms_per_token=1e3 * sum(row["decode_seconds"] for row in rows) / max(1, steps),
            nll=nll if any(one is not None for one in nll) else None,
        )
    except (KeyError, TypeError):
        raise InputError(f"{file} does not hold the statistics of eval_llama3.py") from None


def _joined(parts: list[Result]) -> Result:
    """Parts of one run as one result; an example that stands in several has its mean score."""
    if len(parts) == 1:
        return parts[0]
    rows: dict[int, list[tuple[Result, int]]] = defaultdict(list)
    for part in parts:
        for at, i in enumerate(part.ids):
            rows[i].append((part, at))
    ids = sorted(rows)
    first = [rows[i][0] for i in ids]
    weights = [len(part.ids) for part in parts]

    def weighted(name: str) -> float:
        values = [getattr(part, name) for part in parts]
        return sum(value * weight for value, weight in zip(values, weights)) / sum(weights)

    return replace(
        parts[0],
        ids=ids,
        scores=[_short(mean(part.scores[at] for part, at in rows[i])) for i in ids],
        prompt_tokens=[part.prompt_tokens[at] for part, at in first],
        depths=[part.depths[at] for part, at in first] if parts[0].depths else None,
        prefill_shared_by=max(part.prefill_shared_by for part in parts),
        nll=[part.nll and part.nll[at] for part, at in first] if _any_nll(parts) else None,
        **{name: weighted(name) for name in MEANS},
    )


def _any_nll(parts: list[Result]) -> bool:
    return any(part.nll for part in parts)


def _short(score: float) -> float:
    """As few characters as JSON can do with."""
    return int(score) if score in (0, 1) else round(score, 6)


class _Depths:
    """Where answers stand, found in data files by their checksum."""

    def __init__(self, data_dir: Path | None) -> None:
        if data_dir and not data_dir.is_dir():
            raise InputError(f"there is no data directory {data_dir}")
        files = sorted(data_dir.rglob("*.jsonl")) if data_dir else []
        known = [path for path in files if path.stem in benchmarks.tasks()]
        self._files = {file_sha256(path): path for path in known}
        self._found: dict[str, dict[int, float | None]] = {}

    def of(self, task: Task, data: str) -> dict[int, float | None]:
        """The depths by example of one file; empty where it is not at hand."""
        if data in self._files and data not in self._found:
            examples = read_file(self._files[data], task)
            self._found[data] = {e.id: depth(task, e) for e in examples}
        return self._found.get(data, {})


def depth(task: Task, example: Example) -> float | None:
    """Where in its context the answer first stands: 0 at the start, towards 1 at the end."""
    context = example.fields["context"]
    found = answer_spans(context, task.reference(example.fields).get("ground_truth", ""))
    return round(found[0][0] / len(context), 4) if found else None


def answer_spans(text: str, label: Any) -> list[tuple[int, int]]:
    """Where the answer stands in ``text`` as whole words: ``(start, end)`` in characters."""
    answer = label[0] if isinstance(label, list) and label else label
    if not str(answer).strip():
        return []
    words = rf"(?<!\w){re.escape(str(answer))}(?!\w)"
    return [found.span() for found in re.finditer(words, text)]
