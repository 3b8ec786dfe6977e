"""How far a task has come, on a terminal or in a log."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from kvevict.progress import bar

MIB = 2**20


class Progress:
    """A bar on stderr with tokens per second and the memory that the cache holds.

    Where stderr is no terminal it is a line now and then, and one at the end.
    """

    def __init__(self, examples: list[Any], label: str, visible: bool) -> None:
        self._tokens, self._held, self._began = 0, 0, time.perf_counter()
        self._bar = bar(
            "{desc}: {n}/{total} in {elapsed}, {remaining} left{postfix}",
            iterable=examples,
            desc=label,
            unit="ex",
            disable=not (visible and examples),
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        """The last line comes before whatever is said of an error."""
        self._bar.close()

    def __iter__(self) -> Iterable[Any]:
        return iter(self._bar)

    def report(self, stats: dict[str, Any], first: bool) -> None:
        """Count in an answer by its statistics; ``first`` of those to its prompt."""
        self._tokens += stats["new_tokens"] + (stats["prompt_tokens"] if first else 0)
        self._held = stats["cache_bytes"] if first else max(self._held, stats["cache_bytes"])
        seconds = time.perf_counter() - self._began
        self._bar.set_postfix_str(
            f"{self._tokens / seconds:.0f} tokens/s, "
            f"cache {self._held / MIB:.1f} of {stats['full_cache_bytes'] / MIB:.1f} MiB",
            refresh=False,
        )

    def print(self, line: str) -> None:
        """A line on stdout, past the bar."""
        self._bar.write(line)
