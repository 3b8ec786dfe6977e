"""Scores beside bytes: the script's table and figure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from reporting.load import Result, write_scores

SCRIPT = Path(__file__).parents[2] / "scripts" / "study" / "bytes.py"


def result(name: str, keep: float, kv_dtype: str | None, task: str, score: int, held: int):
    policy = {"name": name, "keep_ratio": keep, **({"kv_dtype": kv_dtype} if kv_dtype else {})}
    settings = {"model": "m", "compress": "prompt", "policy": policy}
    return Result(settings, task, task, [0, 1], [score, score], [9, 9], None, held, 100, 1, 1, 1)


def run(path: Path, results: list[Result], *more: object) -> subprocess.CompletedProcess:
    write_scores(path / "scores.jsonl.gz", results)
    call = [sys.executable, SCRIPT, path / "scores.jsonl.gz", *more]
    return subprocess.run(list(map(str, call)), capture_output=True, text=True)


def test_settings_by_bytes_and_which_of_them_none_beats(tmp_path) -> None:
    rows = [("full", 1.0, None, 1, 100), ("full", 1.0, "int4", 1, 28), ("fade", 0.2, None, 0, 20)]
    rows += [("fade", 0.5, None, 0, 50), ("fade", 0.2, "int8", 0, 12)]
    results = [
        result(name, keep, kind, task, score, held)
        for name, keep, kind, score, held in rows
        for task in ("passkey", "kv_retrieval")
    ]
    done = run(tmp_path, results, "--figure", tmp_path / "bytes.png")
    assert done.returncode == 0, done.stderr
    lines = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines()[2:]]
    assert [(one[1], one[3], one[4], one[6]) for one in lines] == [
        ("full", "16", "100.0%", ""),
        ("fade", "16", "50.0%", ""),
        ("full", "4", "28.0%", "★"),
        ("fade", "16", "20.0%", ""),
        ("fade", "8", "12.0%", "★"),
    ]
    assert (tmp_path / "bytes.png").read_bytes()[:4] == b"\x89PNG"


def test_settings_of_other_tasks_do_not_compare(tmp_path) -> None:
    results = [result("full", 1.0, None, task, 1, 9) for task in ("passkey", "kv_retrieval")]
    done = run(tmp_path, [*results, result("fade", 0.2, None, "passkey", 1, 9)])
    assert done.returncode == 2 and "have not all the same tasks" in done.stderr
