"""Run directories as a reader finds them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmarks
from benchmarks import Benchmark, Task
from benchmarks.examples import parse_json_line
from kvevict.errors import InputError

GZIP = b"\x1f\x8b"
MADE = ("versions", "model_files")


@dataclass(frozen=True)
class Record:
    """What run.json says of a run.

    Attributes:
        name: of its directory, below that of all runs.
        path: the directory.
        settings: what determined the predictions, but for where the model lay.
        data: SHA-256 of each task's data file.
        made: what else was there: ``versions`` of the software, ``model_files`` with their digests.
    """

    name: str
    path: Path
    settings: dict[str, Any]
    data: dict[str, str]
    made: dict[str, Any]

    @property
    def benchmark(self) -> Benchmark:
        """The benchmark that was run."""
        return benchmark_of(self.settings)

    def predictions(self) -> Iterator[tuple[Task, Path]]:
        """Each task that has predictions, with their file."""
        for task in self.benchmark.tasks.values():
            file = self.path / f"preds_{task.name}.jsonl"
            if task.name in self.data and file.exists():
                yield task, file


def benchmark_of(settings: dict[str, Any]) -> Benchmark:
    """The benchmark that a run's settings name."""
    return benchmarks.get(settings.get("benchmark", benchmarks.DEFAULT))


def read_records(output_dir: Path) -> Iterator[Record]:
    """The record of every run below ``output_dir``, by name.

    Raises:
        InputError: there are no runs, or a record is broken.
    """
    if not output_dir.is_dir():
        raise InputError(f"there is no output directory {output_dir}")
    found = sorted(output_dir.rglob("run.json"))
    if not found:
        raise InputError(f"there are no runs (run.json) below {output_dir}")
    for file in found:
        yield _read_record(file, file.parent.relative_to(output_dir).as_posix())


def _read_record(file: Path, name: str) -> Record:
    try:
        run = json.loads(file.read_text("utf-8"))
        settings = run["settings"]
        # Where a model lay says nothing about it, and means nothing on another machine.
        settings = {key: value for key, value in settings.items() if key != "model_path"}
        settings["model"], settings["compress"], settings["policy"]["name"]
        float(settings["policy"].get("budget") or settings["policy"]["keep_ratio"])
        data = {name: task["data_sha256"] for name, task in run["tasks"].items()}
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{file} is not the record of a run") from None
    made = {key: run[key] for key in MADE if key in run}
    return Record(name, file.parent, settings, data, made)


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any], str]]:
    """The whole lines of a file: number, object, and both in words. A line in the making is left.

    Raises:
        InputError: the file cannot be read, or a line is not an object.
    """
    try:
        content = path.read_bytes()
        if content.startswith(GZIP):
            content = gzip.decompress(content)
    except (EOFError, zlib.error):
        raise InputError(f"{path} is not a whole file") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    *lines, _ = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        yield number, parse_json_line(path, number, line), f"{path}, line {number}"
