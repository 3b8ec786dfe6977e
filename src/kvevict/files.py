"""Paths as users write them, checksums, and files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError

BLOCK = 1 << 20  # bytes that are copied or hashed at a time


def expand(path: str | Path) -> Path:
    """A path as a user writes it, where ``~`` stands for a home directory.

    Raises:
        InputError: it is empty, as an unset variable of the shell leaves it, or there is no home.
    """
    if not str(path):
        raise InputError("a path is empty")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: there is no home directory that ~ could stand for") from None


def make_directory(path: Path) -> None:
    """Make a directory and those above it, where they are not there.

    Raises:
        InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write in the place of ``path``, which it takes once the block has ended well.

    A link keeps pointing where it did, and a device or a pipe is
    written itself. The block does nothing but write: whatever system call fails in it is said to
    have failed on ``path``.

    Raises:
        InputError: it cannot be written.
    """
    direct = path.exists() and not path.is_file()
    target = Path(os.path.realpath(path))
    temporary = path if direct else target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield temporary
        if not direct:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if not direct:
            with suppress(OSError):
                temporary.unlink()


def write(path: Path, content: str | bytes) -> Path:
    """Write all of a file, see :func:`replacing`; returns its path.

    What UTF-8 lacks, such as the bytes of an undecodable file name, is written as in
    ``"\\udcff"``, which JSON reads back.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    with replacing(path) as file:
        file.write_bytes(content)
    return path
