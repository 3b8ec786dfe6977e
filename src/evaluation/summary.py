"""What a run cost: the means of its examples' statistics, for run.json and for the reader."""

from __future__ import annotations

from statistics import mean
from typing import Any

import tasks
from evaluation.progress import MIB
from evaluation.runs import Run


def summarise(stats: list[dict[str, Any]]) -> dict[str, Any]:
    """Totals of tokens, means of seconds and bytes; ``ms_per_token`` is of decoding alone."""
    if not stats:  # lost with the machine, unlike predictions that were already on disk
        return {}
    steps = sum(s["decode_steps"] for s in stats)
    return {
        "examples": len(stats),
        "prompt_tokens": sum(s["prompt_tokens"] for s in stats),
        "new_tokens": sum(s["new_tokens"] for s in stats),
        "prefill_seconds": round(mean(s["prefill_seconds"] for s in stats), 4),
        "ms_per_token": round(1e3 * sum(s["decode_seconds"] for s in stats) / max(1, steps), 3),
        "cache_bytes": round(mean(s["cache_bytes"] for s in stats)),
        "full_cache_bytes": round(mean(s["full_cache_bytes"] for s in stats)),
    }


def lines(run: Run, wanted: list[tasks.Task]) -> list[str]:
    """The run's directory, and a line for each task."""
    rows = [str(run.path)]
    for task in wanted:
        of_task = run.record["tasks"][task.name]
        if "examples" not in of_task:
            continue
        rows.append(
            f"  {task.table_name:<16} {of_task['examples']:>4} examples"
            f"  {of_task['prompt_tokens'] / of_task['examples']:>7.0f} tokens"
            f"  prefill {of_task['prefill_seconds']:.2f} s"
            f"  decode {of_task['ms_per_token']:.1f} ms/token"
            f"  cache {of_task['cache_bytes'] / MIB:.2f}"
            f" of {of_task['full_cache_bytes'] / MIB:.2f} MiB"
        )
    return rows
