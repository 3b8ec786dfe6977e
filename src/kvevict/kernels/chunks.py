"""How programs share the entries of heads that hold different numbers of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..quantised import GROUP as KEYS  # read at a time, with one scale for each channel
from .runtime import triton

SHORTEST, LONGEST = 2 * KEYS, 16 * KEYS  # chunks
PROGRAMS = 264  # that a card runs at a time: two on each multiprocessor of an H100


class Chunks(NamedTuple):
    """How the prefixes of a launch's heads are shared out.

    Attributes:
        entries: that a program reads at most, and as many of a tail.
        count: programs; a head without entries has one, too, for its tail.
    """

    entries: int
    count: int


def count_chunks(lengths: Iterable[int], entries: int | None = None) -> Chunks:
    """Chunks for heads of so many entries: as many as run at a time, unless their size is given."""
    lengths = list(lengths)
    if entries is None:
        share = triton.cdiv(triton.cdiv(sum(lengths), PROGRAMS), KEYS) * KEYS
        entries = min(max(share, SHORTEST), LONGEST)
    return Chunks(entries, sum(max(1, triton.cdiv(length, entries)) for length in lengths))
