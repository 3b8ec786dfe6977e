"""Predictions on disk, and their scores: the one grader of all commands."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.benchmark import Benchmark, Figures, Task
from benchmarks.examples import parse_json_line
from kvevict.errors import InputError

OTHER_NAMES = {"pred": "prediction", "label": "ground_truth"}  # in published files


@dataclass(frozen=True)
class Prediction:
    """One line of a predictions file.

    Attributes:
        line: its number, from 1.
        id: of its example; None in files that number none.
        text: what was said.
        reference: all that the line holds, what was right among it.
    """

    line: int
    id: int | None
    text: str
    reference: dict[str, Any]


@dataclass(frozen=True)
class Grades:
    """The scores of one task of one run.

    Attributes:
        ids: of the examples, as :attr:`Prediction.id`.
        scores: of each, 0 to 1.
        figures: what :attr:`Benchmark.summarise` makes of them.
    """

    ids: list[int | None]
    scores: list[float]
    figures: Figures


def grade(path: str | Path, benchmark: Benchmark, task: Task, run: str = "") -> Grades:
    """The scores of the predictions file of a run of this name.

    A half-written last line is left out, and stderr says so.

    Raises:
        InputError: it has no predictions, or one that cannot be graded; names file and line.
    """
    predictions, half_written = read_predictions(path)
    if half_written:
        print(f"note: {path}: the last line is half-written and left out", file=sys.stderr)
    if not predictions:
        raise InputError(f"{path} has no predictions")
    scores = []
    for prediction in predictions:
        try:
            scores.append(task.score(prediction.text, prediction.reference, run))
        except KeyError as error:
            key = error.args[0]
            raise InputError(f'{path}, line {prediction.line}: no "{key}"') from None
        except InputError as error:
            raise InputError(f"{path}, line {prediction.line}: {error}") from None
    references = [prediction.reference for prediction in predictions]
    ids = [prediction.id for prediction in predictions]
    return Grades(ids, scores, benchmark.summarise(scores, references))


def read_predictions(path: str | Path) -> tuple[list[Prediction], bool]:
    """All predictions of a file, and whether a half-written last line was left out.

    A line is ``{"id": …, "prediction": …}`` and what its task's :meth:`Task.reference` gave. A last
    line without its newline that breaks off is that of a run in progress.

    Raises:
        InputError: a line is not a prediction, or an id comes twice; names file and line.
    """
    try:
        lines = Path(path).read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    half_written = bool(lines) and _breaks_off(lines[-1])
    predictions: list[Prediction] = []
    seen = set()
    for number, line in enumerate(lines[:-1] if half_written else lines, start=1):
        if not line.strip():
            continue
        row = parse_json_line(path, number, line)
        for other, name in OTHER_NAMES.items():
            if other in row:
                row.setdefault(name, row.pop(other))
        where = f"{path}, line {number}"
        if not isinstance(row.get("prediction"), str):
            raise InputError(f'{where}: no "prediction" that is a text')
        example = row.get("id")
        if "id" in row:
            if type(example) is not int:
                raise InputError(f'{where}: an "id" that is not an integer')
            if example in seen:
                raise InputError(f"{where}: a second prediction for id {example}")
            seen.add(example)
        predictions.append(Prediction(number, example, row["prediction"], row))
    return predictions, half_written


def _breaks_off(line: bytes) -> bool:
    """Whether a line is the start of an object. A whole one with something behind it is not."""
    if line.endswith(b"\n") or not line.startswith(b"{"):
        return False
    try:
        json.JSONDecoder().raw_decode(line.decode(errors="replace"))
    except ValueError:
        return True
    return False
