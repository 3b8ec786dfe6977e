"""A run directory: predictions of one setting, appended as they are made.

``run.json`` says what was run; ``preds_<task>.jsonl`` holds a prediction a line and
``stats_<task>.jsonl`` its timings. The process of rank 0 appends to these, any other to
``….rank<r>.jsonl`` beside them; merging sorts all by example and drops what is half-written or
there twice, so that a run may be killed at any moment and continued by any number of processes.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from kvevict.errors import InputError

KINDS = ("stats", "preds")  # an example is done once its second line is written


class Run:
    """One run directory, as one process sees it.

    Attributes:
        path: the directory.
        settings: what determines the predictions.
        record: the contents of run.json.
    """

    def __init__(self, path: Path, settings: dict[str, Any], rank: int = 0) -> None:
        self.path, self.settings, self.rank = path, settings, rank
        self.record: dict[str, Any] = {"settings": settings, "tasks": {}}
        self._lock = None
        self._files: dict[str, Any] = {}

    def open(self) -> None:
        """Create or continue the directory; rank 0 only.

        Raises:
            InputError: it cannot be written, is in use, or holds a run with other settings.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 - held until the end
        except OSError as error:
            raise InputError(f"cannot write to {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{self.path} is in use by another process") from None
        file = self.path / "run.json"
        if file.exists():
            try:
                self.record = json.loads(file.read_text())
                old = self.record["settings"]
            except (ValueError, KeyError):
                raise InputError(f"{file} is not the record of a run") from None
            if old != json.loads(json.dumps(self.settings)):
                changed = sorted(k for k in {**old, **self.settings} if _differ(old, self, k))
                raise InputError(
                    f"{self.path} holds a run with other settings ({', '.join(changed)}); "
                    "give another --model_name or --output_dir"
                )
        else:
            self.save()

    def save(self) -> None:
        """Write run.json at once or not at all."""
        _replace(self.path / "run.json", json.dumps(self.record, indent=2) + "\n")

    def check_data(self, task: str, sha256: str) -> None:
        """Refuse to continue a task on data that has changed; rank 0 only."""
        known = self.record["tasks"].setdefault(task, {}).setdefault("data_sha256", sha256)
        if known != sha256:
            raise InputError(f"the data of {task} has changed since {self.path} was begun")

    def done(self, task: str) -> set[int]:
        """Examples predicted, after a merge."""
        return {row["id"] for row in _read(self._file("preds", task, 0))}

    def append(self, task: str, prediction: dict[str, Any], stats: dict[str, Any]) -> None:
        """Add one example's results; each has its ``id``."""
        for kind, row in zip(KINDS, (stats, prediction)):
            path = self._file(kind, task, self.rank)
            if path not in self._files:
                self._files[path] = open(path, "a", encoding="utf-8")  # noqa: SIM115
            self._files[path].write(json.dumps(row) + "\n")
            self._files[path].flush()

    def merge(self, task: str) -> None:
        """Bring what all processes wrote into one file, in order; rank 0 only, others idle."""
        self.close()
        done = None
        for kind in reversed(KINDS):  # predictions first: they say which examples are done
            main = self._file(kind, task, 0)
            parts = sorted(self.path.glob(f"{kind}_{task}.rank*.jsonl"))
            rows = {row["id"]: row for path in (main, *parts) for row in _read(path)}
            if done is None:
                done = set(rows)
            lines = [json.dumps(rows[i]) + "\n" for i in sorted(rows) if i in done]
            text = "".join(lines)
            if rows and (not main.exists() or main.read_text(encoding="utf-8") != text):
                _replace(main, text)
            elif not rows and main.exists():
                main.unlink()
            for path in parts:
                path.unlink()

    def stats(self, task: str) -> list[dict[str, Any]]:
        """The timings of a task's examples, after a merge."""
        return _read(self._file("stats", task, 0))

    def close(self) -> None:
        """Close the files appended to."""
        for file in self._files.values():
            file.close()
        self._files = {}

    def _file(self, kind: str, task: str, rank: int) -> Path:
        suffix = f".rank{rank}" if rank else ""
        return self.path / f"{kind}_{task}{suffix}.jsonl"


def _differ(old: dict[str, Any], run: Run, key: str) -> bool:
    new = json.loads(json.dumps(run.settings))
    return old.get(key) != new.get(key)


def _read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that this module wrote; a half-written last one is dropped.

    Raises:
        InputError: a whole line is not a result.
    """
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["id"] += 0
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}, line {number}, is not a result of this program") from None
        rows.append(row)
    return rows


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
