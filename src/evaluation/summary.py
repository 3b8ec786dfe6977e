"""What runs cost: the means of their examples' statistics, for run.json and for the reader."""

from __future__ import annotations

from statistics import mean
from typing import Any

import tasks
from evaluation.progress import MIB
from evaluation.runs import Run

HEAD = "  examples   tokens  prefill s  ms/token  cache MiB    kept  run"


def summarise(stats: list[dict[str, Any]]) -> dict[str, Any]:
    """Totals of tokens, means of seconds and bytes.

    ``ms_per_token`` is of decoding alone; None for a batch, whose time is of no setting alone.
    """
    if not stats:  # lost with the machine, unlike predictions that were already on disk
        return {}
    steps = sum(s["decode_steps"] for s in stats)
    of_batch = any(s.get("decoded_together", 1) > 1 for s in stats)
    decoding = 1e3 * sum(s["decode_seconds"] for s in stats) / max(1, steps)
    return {
        "examples": len(stats),
        "prompt_tokens": sum(s["prompt_tokens"] for s in stats),
        "new_tokens": sum(s["new_tokens"] for s in stats),
        "prefill_seconds": round(mean(s["prefill_seconds"] for s in stats), 4),
        "prefill_shared_by": max(s["policies"] for s in stats),
        "ms_per_token": None if of_batch else round(decoding, 3),
        "cache_bytes": round(mean(s["cache_bytes"] for s in stats)),
        "full_cache_bytes": round(mean(s["full_cache_bytes"] for s in stats)),
    }


def table(runs: list[Run], wanted: list[tasks.Task]) -> str:
    """The runs of each task below one another, by means over their examples."""
    lines, whole, shared = [], [], False
    for task in wanted:
        lines += [task.table_name, HEAD]
        for run in runs:
            row = run.record["tasks"][task.name]
            if "examples" not in row:
                continue
            kept = row["cache_bytes"] / row["full_cache_bytes"]
            mark = "*" if row["prefill_shared_by"] > 1 else " "
            shared |= mark == "*"
            decoding = "–" if row["ms_per_token"] is None else f"{row['ms_per_token']:.1f}"
            lines.append(
                f"{row['examples']:>10}{row['prompt_tokens'] / row['examples']:>9.0f}"
                f"{row['prefill_seconds']:>11.2f}{mark}{decoding:>9}"
                f"{row['cache_bytes'] / MIB:>11.2f}{kept:>8.1%}  {run.path}"
            )
            policy = run.settings["policy"]
            if kept == 1 and policy["keep_ratio"] < 1:
                whole.append(policy["min_eviction_seqlen"])
    if shared:
        lines.append("* one prefill served several settings; its whole time stands at each")
    if whole:
        lines.append(f"note: prompts of {max(whole)} or fewer tokens are not evicted from; lower "
                     "--min_eviction_seqlen to change that")  # fmt: skip
    return "\n".join(lines)
