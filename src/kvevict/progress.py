"""How far a long piece of work has come: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

LOG_SECONDS = 20


def bar(log_format: str, **settings: Any) -> tqdm:
    """tqdm's bar on stderr, or a line every ``LOG_SECONDS`` where stderr is no terminal.

    Args:
        log_format: of a line, in tqdm's words for ``bar_format``.
        settings: what else ``tqdm`` takes.
    """
    if sys.stderr.isatty():
        return tqdm(file=sys.stderr, dynamic_ncols=True, mininterval=0.1, **settings)
    return tqdm(
        file=_Lines(sys.stderr),
        mininterval=LOG_SECONDS,
        delay=1e-9,  # no line before anything is done
        bar_format=log_format,
        **settings,
    )


@contextmanager
def transfer(label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar that counts bytes; what it gives is told how many there are by now.

    Args:
        label: what is on its way.
        total: bytes; None where nobody knows yet.
    """
    log_format = "{desc}: {n_fmt}B of {total_fmt}B" if total else "{desc}: {n_fmt}B"
    with bar(log_format, desc=label, total=total, unit="B", unit_scale=True) as shown:
        yield lambda done: shown.update(done - shown.n)


class _Lines:
    """Makes a line of each state that tqdm would have drawn over the last one, if it is another."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.encoding, self.last = stream, stream.encoding, ""

    def write(self, text: str) -> None:
        text = text.strip()
        if text and text != self.last:
            self.stream.write(text + "\n")
            self.last = text

    def flush(self) -> None:
        self.stream.flush()
