"""What every command does alike: its flags, its streams, and its last words."""

from __future__ import annotations

import argparse
import functools
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TextIO

from . import environment, files
from .errors import InputError

STOPPED = "no file is left half-written"


def command(afterwards: str = STOPPED) -> Callable[[Callable], Callable[..., int]]:
    """Make a function the ``main`` of a command.

    It returns the exit status: what the function returned, or 0; 2, with one sentence on stderr,
    for what a user can set right, such as bad input, a full disk or too little memory; 130 after
    Ctrl-C. Texts reach every terminal, whatever its encoding, and a reader that leaves stops
    nothing.

    Args:
        afterwards: what to tell someone who pressed Ctrl-C, or whose memory was too little.
    """

    def decorate(work: Callable[..., int | None]) -> Callable[..., int]:
        @functools.wraps(work)
        def main(*args, **kwargs) -> int:
            _prepare_streams()
            try:
                environment.provide_homes()
                status = work(*args, **kwargs) or 0
                _finish_stdout()
            except (InputError, FloatingPointError, OSError) as error:
                return fail(error)
            except KeyboardInterrupt:
                print(f"\nstopped; {afterwards}", file=sys.stderr)
                return 130
            except (MemoryError, RuntimeError) as error:
                if not _is_of_memory(error):
                    raise
                return fail(f"out of memory{_wanted(error)}; {afterwards}")
            return status

        return main

    return decorate


def fail(error: object) -> int:
    """Say in one line on stderr what is wrong; the exit status, 2."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
    print("error:", re.sub(r"\s*\n\s*", " ", text.strip()), file=sys.stderr)
    return 2


def _is_of_memory(error: Exception) -> bool:
    """Whether memory was too little: PyTorch on a CPU has no class of its own for that."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)


def _wanted(error: Exception) -> str:
    """How much memory there should have been, as far as a library says so."""
    found = re.search(r"alloc(?:ate)? (?:memory of )?(\d[\d.]*) ?([KMGTPE]i?B)?", str(error))
    return f" where {found[1]} {found[2] or 'bytes'} more were wanted" if found else ""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ``InputError``: one sentence, without the list of flags."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def user_path(text: str) -> Path:
    """The type of every flag that names a file or a directory."""
    try:
        return files.expand(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def from_here(directory: Path) -> Path:
    """An absolute directory as seen from the working directory: a default to show in ``--help``."""
    return Path(os.path.relpath(directory))


class _Output(io.FileIO):
    """A descriptor that is written to as long as that works; afterwards all is dropped.

    A reader may leave and a log's disk may fill while hours of work go on.
    """

    failure: OSError | None = None

    def write(self, data: bytes) -> int | None:
        if self.failure is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failure = error
        return memoryview(data).nbytes


def _prepare_streams() -> None:
    """Let stdout and stderr take any text, and outlive their readers."""
    # A descriptor that was closed would become that of the next file, and get a library's warnings.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):  # nobody has put another in its place
            setattr(sys, name, _tolerant(stream))


def _tolerant(stream: TextIO) -> TextIO:
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering or stream.write_through,
    )


def _finish_stdout() -> None:
    """Raise what kept results from being printed; that nobody wanted to read on is no error."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    failure = getattr(raw, "failure", None)
    if failure is not None and not isinstance(failure, BrokenPipeError):
        raise InputError(f"cannot write to standard output: {failure.strerror}")
