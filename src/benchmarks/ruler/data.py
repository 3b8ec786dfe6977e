"""Samples on disk: a folder a length, a file a task."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.benchmark import Task
from benchmarks.ruler.samples import SEED, stream
from kvevict.errors import InputError
from kvevict.files import make_directory, replacing, write
from kvevict.models.tokenizer import Tokenizer
from kvevict.progress import bar

EXAMPLES = 500  # a task, as in the paper
RECORD = "ruler.json"
PROBE = "The pass key of Ĝis is\n 0123456789-f00d; don't FORGET: VAR XQJZK = {x[1]}?\n\n「四十二」"


def make(
    folder: Path,
    tasks: Sequence[Task],
    length: int,
    tokenizer: Tokenizer,
    examples: int | None = None,
    seed: int | None = None,
) -> None:
    """Write the files that ``folder`` lacks, each whole or not at all, and what made them.

    Args:
        tasks: of RULER.
        length: as in :func:`benchmarks.ruler.samples.stream`.
        tokenizer: that counts.
        examples: of each task; None for as many as the folder's other files have, at first 500.
        seed: of all draws; None for that of the folder's other files, at first 42.

    Raises:
        InputError: the folder holds files made otherwise or cannot be written, the length is too
            short for a task, or its questions are fewer than the examples asked for.
    """
    missing = [task for task in tasks if not (folder / task.file).exists()]
    record = _record(folder)
    asked = {"length": length, "tokenizer": fingerprint(tokenizer)}
    asked.update({} if examples is None else {"examples": examples})
    asked.update({} if seed is None else {"seed": seed})
    other = [name for name, value in asked.items() if record.get(name, value) != value]
    if other:
        raise InputError(
            f"{folder} holds data made with another {' and '.join(other)} ({RECORD}); name another "
            "directory"
        )
    if not missing:
        return
    record = {"examples": EXAMPLES, "seed": SEED, **record, **asked}
    make_directory(folder)
    write(folder / RECORD, json.dumps(record, indent=2) + "\n")
    for task in missing:
        print(f"making {folder / task.file}", file=sys.stderr)
        progress = {"desc": task.title, "total": record["examples"]}
        with replacing(folder / task.file) as new, open(new, "w", encoding="utf-8") as file:
            lines = _lines(task, tokenizer, record)
            file.writelines(bar("{desc}: {n_fmt} of {total_fmt}", iterable=lines, **progress))


def fingerprint(tokenizer: Tokenizer) -> str:
    """The same for tokenizers that split a text of many kinds of characters alike."""
    ids = tokenizer.encode(PROBE, special_tokens=False)
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def _lines(task: Task, tokenizer: Tokenizer, record: dict[str, Any]) -> Iterator[str]:
    def count_tokens(text: str) -> int:
        return len(tokenizer.encode(text, special_tokens=False))

    samples = stream(task.name, record["length"], count_tokens, record["seed"])
    for index in range(record["examples"]):
        sample = next(samples, None)
        if sample is None:
            raise InputError(f"{task.name} has {index} questions, not {record['examples']}")
        row = {"index": index, **sample.prompt._asdict()}
        row.update(outputs=sample.answers, length=sample.length)
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _record(folder: Path) -> dict[str, Any]:
    """What made the files of a folder; nothing where there are none."""
    file = folder / RECORD
    if not any(folder.glob("[!.]*.jsonl")):
        return {}
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError):
        raise InputError(f"{file} is not the record of RULER's files") from None
