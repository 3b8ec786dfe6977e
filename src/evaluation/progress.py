"""How far a task has come, on a terminal or in a log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvevict.progress import bar

MIB = 2**20


class Progress:
    """A bar on stderr with tokens per second and the memory that the cache holds.

    Where stderr is no terminal it is a line now and then, and one at the end.
    """

    def __init__(self, examples: list[Any], label: str, visible: bool) -> None:
        self._tokens, self._seconds = 0, 0.0
        self._bar = bar(
            "{desc}: {n}/{total} in {elapsed}, {remaining} left{postfix}",
            iterable=examples,
            desc=label,
            unit="ex",
            disable=not (visible and examples),
        )

    def __iter__(self) -> Iterable[Any]:
        return iter(self._bar)

    def report(self, stats: list[dict[str, Any]], seconds: float) -> None:
        """Count in one example's statistics under each policy."""
        self._tokens += stats[0]["prompt_tokens"] + sum(s["new_tokens"] for s in stats)
        self._seconds += seconds
        held, full = max(s["cache_bytes"] for s in stats), stats[0]["full_cache_bytes"]
        self._bar.set_postfix_str(
            f"{self._tokens / self._seconds:.0f} tokens/s, "
            f"cache {held / MIB:.1f} of {full / MIB:.1f} MiB",
            refresh=False,
        )

    def print(self, line: str) -> None:
        """A line on stdout, past the bar."""
        self._bar.write(line)
