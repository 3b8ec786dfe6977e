"""How far a task has come, on a terminal or in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

LOG_SECONDS = 20
MIB = 2**20


class Progress:
    """A bar on stderr with tokens per second and the memory that the cache holds.

    Where stderr is no terminal it is a line every ``LOG_SECONDS``, and one at the end.
    """

    def __init__(self, examples: list[Any], label: str, visible: bool) -> None:
        terminal = sys.stderr.isatty()
        self._tokens, self._seconds = 0, 0.0
        self._bar = tqdm(
            examples,
            desc=label,
            unit="ex",
            disable=not (visible and examples),
            file=sys.stderr if terminal else _Lines(sys.stderr),
            dynamic_ncols=terminal,
            mininterval=0.1 if terminal else LOG_SECONDS,
            delay=0 if terminal else 1e-9,  # no line before the first example
            bar_format=None
            if terminal
            else "{desc}: {n}/{total} in {elapsed}, {remaining} left{postfix}",
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


class _Lines:
    """Makes a line of each state that tqdm would have drawn over the last one."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.encoding = stream, stream.encoding

    def write(self, text: str) -> None:
        text = text.strip()
        if text:
            self.stream.write(text + "\n")

    def flush(self) -> None:
        self.stream.flush()
