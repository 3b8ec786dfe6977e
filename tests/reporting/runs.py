"""Run directories for tests, written by the evaluation's own writer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from benchmarks import infinitebench
from benchmarks.examples import read_file
from evaluation.runs import Run
from kvevict.methods import build, describe

TOKENS, BYTES_PER_TOKEN = 1000, 100


def write_data(path: Path, count: int, words: int = 100) -> None:
    """Passkey examples, the key of example i after ``words · i / count`` words of filler."""
    path.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        context = ["grass"] * words
        context.insert(words * i // count, f"{10_000 + i}")
        rows.append({"context": " ".join(context), "input": "Which?", "answer": f"{10_000 + i}"})
    (path / "passkey.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def write_run(
    path: Path,
    method: str,
    correct: list[bool],
    task: str = "passkey",
    data: Path | None = None,
    tokens: int = TOKENS,
    model: str = "llama",
    compress: str = "prompt",
    together: bool = False,
    **settings,
) -> None:
    """A finished run whose example i is answered right where ``correct[i]``."""
    policy = build(method, **settings)
    mode = {"decode_together": True} if together else {}
    run = Run(path, {"model": model, "compress": compress, "policy": describe(policy), **mode})
    file = data / f"{task}.jsonl" if data else None
    content = file.read_bytes() if file else f"{task}{tokens}".encode()
    run.open({task: hashlib.sha256(content).hexdigest()}, model={})
    labels = [f"{10_000 + i}" for i in range(len(correct))]
    if file:
        reference = infinitebench.TASKS[task].reference
        examples = list(read_file(file, infinitebench.TASKS[task]))
        labels = [reference(example.fields)["ground_truth"] for example in examples]
    kept = policy.budget / tokens if policy.budget else policy.keep_ratio
    for i, right in enumerate(correct):
        answer = f" {labels[i]}" if right else " nothing"
        stats = {
            "id": i,
            "prompt_tokens": tokens,
            "new_tokens": 5,
            "decode_steps": 4,
            "policies": 1 if method == "full" else 2,
            "prefill_seconds": 2.0,
            "decode_seconds": 0.2 * kept,
            "cache_bytes": int(kept * tokens * BYTES_PER_TOKEN),
            "cache_entries": int(kept * tokens),
            "full_cache_bytes": tokens * BYTES_PER_TOKEN,
        }
        run.append(task, {"id": i, "prediction": answer, "ground_truth": labels[i]}, stats)
    run.merge(task)
