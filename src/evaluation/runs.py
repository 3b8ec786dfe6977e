"""A run directory: predictions of one setting, appended as they are made.

``run.json`` says what was run; ``preds_<task>.jsonl`` holds a prediction a line and
``stats_<task>.jsonl`` its timings. Processes that share a run append to ``….rank<r>.jsonl`` beside
them. Merging sorts all by example and drops what is half-written or there twice, so that a run may
be killed at any moment and continued by any number of processes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from kvevict import files
from kvevict.backends import versions
from kvevict.backends.products import SIZES
from kvevict.errors import InputError

KINDS = ("stats", "preds")  # an example is done once its second line is written
OTHERWISE = "give another --model_name or --output_dir"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


class Run:
    """One run directory, as one process sees it.

    Attributes:
        path: the directory.
        settings: what determines the predictions.
        rank: this process's number where several share the run, else None.
        record: the contents of run.json.
    """

    def __init__(self, path: Path, settings: dict[str, Any], rank: int | None = None) -> None:
        self.path, self.settings, self.rank = path, json.loads(json.dumps(settings)), rank
        self.record: dict[str, Any] = {"settings": self.settings, "tasks": {}}
        self._lock: TextIO | None = None
        self._files: dict[Path, TextIO] = {}

    def check(self, data: dict[str, str], model: dict[str, str]) -> None:
        """Refuse what :meth:`open` would refuse, as far as that can be told without writing.

        For the time before a model is loaded; arguments and errors as there.
        """
        place = self.path
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise InputError(f"cannot write to {self.path}: {place} is not a directory")
        if not os.access(place, os.W_OK | os.X_OK):
            raise InputError(f"cannot write to {self.path}: {place} is not to be written to")
        if (self.path / ".lock").exists():
            _locked(self.path / ".lock").close()
        self._compare(data, model)

    def open(self, data: dict[str, str], model: dict[str, str]) -> None:
        """Create or continue the directory, and merge what it holds; one process only.

        Args:
            data: SHA-256 of each task's data file.
            model: size and digest of each of the model's files.

        Raises:
            InputError: it cannot be written, is in use, or holds a run with other settings, on
                other data or of another model.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.path / ".lock")
        except OSError as error:
            raise InputError(f"cannot write to {self.path}: {error.strerror}") from None
        self._compare(data, model)
        self._note("versions", versions(self.settings.get("framework", "paddle")))
        self.save()
        for task in data:
            self.merge(task)

    def save(self) -> None:
        """Write run.json at once or not at all."""
        files.write(self.path / "run.json", json.dumps(self.record, indent=2) + "\n")

    def done(self, task: str) -> set[int]:
        """Examples predicted, after a merge."""
        return {row["id"] for row in _read(self._file("preds", task))}

    def append(self, task: str, prediction: dict[str, Any], stats: dict[str, Any]) -> None:
        """Add one example's results; each has its ``id``.

        Raises:
            InputError: the files cannot be written, or another process writes to them.
        """
        for kind, row in zip(KINDS, (stats, prediction)):
            path = self._file(kind, task, self.rank)
            try:
                if path not in self._files:
                    self._files[path] = _locked(path)
                self._files[path].write(json.dumps(row) + "\n")
                self._files[path].flush()
            except OSError as error:
                raise InputError(
                    f"cannot write to {path}: {error.strerror}; what was predicted is kept, and "
                    "the same command goes on from there"
                ) from None

    def merge(self, task: str) -> None:
        """Bring what all processes wrote into one file, in order; the others being idle."""
        self.close()
        done = None
        for kind in reversed(KINDS):  # predictions first: they say which examples are done
            main = self._file(kind, task)
            parts = sorted(self.path.glob(f"{kind}_{task}.rank*.jsonl"))
            rows = {row["id"]: row for path in (main, *parts) for row in _read(path)}
            done = set(rows) if done is None else done
            text = "".join(json.dumps(rows[i]) + "\n" for i in sorted(rows) if i in done)
            if text and (not main.exists() or main.read_text(encoding="utf-8") != text):
                files.write(main, text)
            elif not text and main.exists():
                main.unlink()
            for path in parts:
                path.unlink()

    def note_products(self, products: dict[str, str]) -> None:
        """Put on record what multiplies by the weights; say so where that was another before."""
        before = self.record.get("products", products)
        if before != products:
            now, then = (", ".join(dict.fromkeys(names.values())) for names in (products, before))
            _note_once(f"{self.path}: products are by {now}, and round otherwise than by {then}")
        self._note("products", products)
        self.save()

    def products(self) -> dict[str, str] | None:
        """What run.json says so far of :meth:`note_products`."""
        return json.loads((self.path / "run.json").read_text(encoding="utf-8")).get("products")

    def predictions(self, task: str) -> Path:
        """The file of a task's predictions, after a merge."""
        return self._file("preds", task)

    def stats(self, task: str) -> list[dict[str, Any]]:
        """The timings of a task's examples, after a merge."""
        return _read(self._file("stats", task))

    def close(self) -> None:
        """Close the files appended to."""
        for file in self._files.values():
            file.close()
        self._files = {}

    def _compare(self, data: dict[str, str], model: dict[str, str]) -> None:
        """Take up the record of the run that is there, if it is this one."""
        if (self.path / "run.json").exists():
            self._continue()
        elif any(self.path.glob("preds_*")):
            raise InputError(f"{self.path} holds predictions without a run.json; {OTHERWISE}")
        for task, sha256 in data.items():
            of_task = self.record["tasks"].setdefault(task, {})
            if of_task.setdefault("data_sha256", sha256) != sha256:
                raise InputError(f"{self.path} was begun on other data of {task}; {OTHERWISE}")
        before = self.record.setdefault("model_files", model)
        changed = sorted(name for name in {*before, *model} if before.get(name) != model.get(name))
        if changed:
            raise InputError(
                f"{self.path} was begun with another model ({', '.join(changed)}); {OTHERWISE}"
            )

    def _continue(self) -> None:
        file = self.path / "run.json"
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            old, files_before = dict(record["settings"]), dict(record.get("model_files", {}))
            record["tasks"] = {task: dict(row) for task, row in record["tasks"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{file} is not the record of a run") from None
        if not files_before and any(self.path.glob("preds_*")):
            _note_once(f"{file} does not say of which weights the predictions so far are")
        for key in {"dtype", "device"}.difference(old):  # once beside the settings, if at all
            said = record.get(key)
            if key == "device" and said is not None:
                said = "cpu" if said == "cpu" else "gpu"
            old[key] = said or self.settings.get(key)
        keys = sorted({*old, *self.settings})
        changed = [key for key in keys if old.get(key) != self.settings.get(key)]
        if changed:
            raise InputError(
                f"{self.path} holds a run with other settings ({', '.join(changed)}); {OTHERWISE}"
            )
        if any(self.path.glob("preds_*")):  # of before there was a choice
            own = self.settings.get("framework", "paddle")
            record.setdefault("products", dict.fromkeys(SIZES, own))
        self.record = {**record, "settings": self.settings}

    def _note(self, key: str, now: Any) -> None:
        before = self.record.setdefault(key, now)
        if before != now:
            self.record.setdefault(f"earlier_{key}", []).append(before)
            self.record[key] = now

    def _file(self, kind: str, task: str, rank: int | None = None) -> Path:
        suffix = "" if rank is None else f".rank{rank}"
        return self.path / f"{kind}_{task}{suffix}.jsonl"


def _locked(path: Path) -> TextIO:
    """``path``, to append to, for as long as it stays open. A process that dies lets go of it."""
    file = open(path, "a", encoding="utf-8")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(f"{path.parent} is in use by another process") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            file.close()
            raise
        _note_once(
            f"the file system of {path.parent} has no locks: nothing keeps a second command from "
            "writing there at the same time"
        )
    return file


@cache
def _note_once(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


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
