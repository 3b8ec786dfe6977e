"""How much of the prompts' caches was kept, counted while the harness asks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..engine import Session


@dataclass
class Kept:
    """Sums over prompts; a prompt that several requests share counts once.

    Attributes:
        prompts: prefilled.
        left_whole: of them, those that nothing was evicted from.
        tokens: in them.
        question_tokens: of these, the questions'.
        entries: of the cache, over all layers and kv heads, before eviction.
        kept: of these, after it.
    """

    prompts: int = 0
    left_whole: int = 0
    tokens: int = 0
    question_tokens: int = 0
    entries: int = 0
    kept: int = 0

    def add(self, tokens: int, question: int | None, session: Session) -> None:
        """Count a prompt, with its question's tokens and the session that has just prefilled it."""
        entries = tokens * session.model.layers * session.model.kv_heads
        self.prompts += 1
        self.left_whole += session.cache.entries == entries
        self.tokens += tokens
        self.question_tokens += question or 0
        self.entries += entries
        self.kept += session.cache.entries

    def record(self) -> dict[str, Any]:
        """The sums, and the share kept; None where nothing was prefilled."""
        return {**asdict(self), "share": self.kept / self.entries if self.entries else None}

    def __str__(self) -> str:
        share = f" ({self.kept / self.entries:.1%})" if self.entries else ""
        return (
            f"kvevict: {self.kept:,} of {self.entries:,} cache entries kept{share}, of "
            f"{self.prompts:,} prompts with {self.tokens:,} tokens; {self.left_whole:,} left whole"
        )
