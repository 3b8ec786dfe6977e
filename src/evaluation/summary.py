"""What runs cost: the means of their examples' statistics, for run.json and for the reader."""

from __future__ import annotations

from statistics import mean
from typing import Any

from benchmarks import Benchmark, Task
from benchmarks.grading import grade
from evaluation.progress import MIB
from evaluation.runs import Run
from kvevict.errors import InputError
from kvevict.methods.registry import evicts

HEAD = "  examples   tokens  prefill s  ms/token  cache MiB    kept   score  run"


def summarise(stats: list[dict[str, Any]]) -> dict[str, Any]:
    """Totals of tokens, means of seconds and bytes.

    ``ms_per_token`` is of decoding alone; None for a batch, whose time is of no setting alone.
    ``left_whole`` counts the prompts that nothing was evicted from, where it is known.
    ``prefill_seconds`` is of the ``prefills`` that read a whole prompt: not of questions whose
    context another one had read.
    """
    if not stats:  # lost with the machine, unlike predictions that were already on disk
        return {}
    steps = sum(s["decode_steps"] for s in stats)
    of_batch = any(s.get("decoded_together", 1) > 1 for s in stats)
    decoding = 1e3 * sum(s["decode_seconds"] for s in stats) / max(1, steps)
    read = [s for s in stats if not s.get("context_reused")]
    cut = [s["prompt_tokens"] for s in stats if s["prompt_tokens"] < s.get("uncut_tokens", 0)]
    return {
        "examples": len(stats),
        "prompt_tokens": sum(s["prompt_tokens"] for s in stats),
        "cut_prompts": len(cut),
        "cut_to_tokens": max(cut, default=None),
        "left_whole": sum(s.get("left_whole", False) for s in stats),
        "new_tokens": sum(s["new_tokens"] for s in stats),
        "prefills": len(read),
        "prefill_seconds": round(mean(s["prefill_seconds"] for s in read or stats), 4),
        "prefill_shared_by": max(s["policies"] for s in stats),
        "ms_per_token": None if of_batch else round(decoding, 3),
        "cache_bytes": round(mean(s["cache_bytes"] for s in stats)),
        "full_cache_bytes": round(mean(s["full_cache_bytes"] for s in stats)),
    }


def table(runs: list[Run], benchmark: Benchmark, wanted: list[Task]) -> str:
    """The runs of each task below one another, by means over their examples."""
    lines, shared, reused, whole, cut = [], False, False, [], []
    for task in wanted:
        lines += [task.title, HEAD]
        above = None
        for run in runs:
            row = run.record["tasks"][task.name]
            if "examples" not in row:
                continue
            kept = row["cache_bytes"] / row["full_cache_bytes"]
            seconds, mark = row["prefill_seconds"], "*" if row["prefill_shared_by"] > 1 else " "
            shared |= mark == "*"
            reused |= row.get("prefills", row["examples"]) < row["examples"]
            prefill = '"' if mark == "*" and seconds == above else f"{seconds:.2f}{mark}"
            above = seconds
            decoding = "–" if row["ms_per_token"] is None else f"{row['ms_per_token']:.1f}"
            lines.append(
                f"{row['examples']:>10}{row['prompt_tokens'] / row['examples']:>9.0f}"
                f"{prefill:>12}{decoding:>9}"
                f"{row['cache_bytes'] / MIB:>11.2f}{kept:>8.1%}{_score(run, benchmark, task):>8}"
                f"  {run.path.name}"
            )
            if row.get("left_whole") and evicts(run.settings["policy"]):
                whole.append(f"{row['left_whole']} of {row['examples']} of {task.title}")
            if row.get("cut_prompts"):
                some = f"{row['cut_prompts']} of {row['examples']} of {task.title}"
                cut.append(f"{some} to {row['cut_to_tokens']} tokens")
    if shared:
        lines.append("* one prefill served several settings")
    if reused:
        lines.append("note: prefill s is of the first question on each context; others reuse it")
    if whole:
        lines.append(f"note: prompts were left whole: {', '.join(dict.fromkeys(whole))} (no longer "
                     "than --min_eviction_seqlen or the budget)")  # fmt: skip
    if cut:
        lines.append(f"note: prompts were cut in the middle: {', '.join(dict.fromkeys(cut))} "
                     "(--no_truncation refuses them)")  # fmt: skip
    return "\n".join(lines)


def _score(run: Run, benchmark: Benchmark, task: Task) -> str:
    try:
        grades = grade(run.predictions(task.name), benchmark, task, run.path.name)
        return benchmark.shown(grades.figures)
    except InputError:  # a label that cannot be read; compute_scores.py says where it stands
        return "–"
