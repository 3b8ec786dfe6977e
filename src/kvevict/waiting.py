"""A word on what takes long."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer

SECONDS = 3.0


@contextmanager
def waiting(what: str, seconds: float = SECONDS) -> Iterator[None]:
    """Say on stderr what is waited for, once the block has taken that many ``seconds``."""
    timer = Timer(seconds, lambda: print(f"waiting for {what}", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
