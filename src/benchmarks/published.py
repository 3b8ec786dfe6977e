"""Published data files: which are missing, whether one is whole, and the way out of an archive."""

from __future__ import annotations

import os
import shutil
import zlib
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from zipfile import BadZipFile, ZipFile

from benchmarks.benchmark import Task
from benchmarks.examples import read_file
from kvevict.errors import InputError


def check(path: Path, task: Task) -> None:
    """Raise InputError unless ``path`` is the whole published file of ``task``."""
    found = sum(1 for _ in read_file(path, task))
    if found != task.examples:
        raise InputError(f"{path} has {found} examples, the published file has {task.examples}")


def missing(tasks: list[Task], directory: Path) -> list[Task]:
    """The tasks whose published files are not there yet.

    Raises:
        InputError: a file is there and is not the published one.
    """
    there = [task for task in tasks if (directory / task.file).exists()]
    for task in there:
        try:
            check(directory / task.file, task)
        except InputError as error:
            raise InputError(f"{error}; move it away to download it anew") from None
    return [task for task in tasks if task not in there]


def unpack(archive: Path, tasks: list[Task], directory: Path) -> None:
    """Take the files of ``tasks`` out of a zip archive, all or none of them.

    Raises:
        InputError: the archive is not whole, or a file in it is missing or not the published one.
    """
    with TemporaryDirectory(dir=directory) as scratch:
        _extract(archive, [task.file for task in tasks], Path(scratch))
        for task in tasks:
            check(Path(scratch, task.file), task)
        for task in tasks:
            os.replace(Path(scratch, task.file), directory / task.file)


def _extract(archive: Path, names: list[str], directory: Path) -> None:
    """Write the members of these names, whatever folder they are in; each is checked by its CRC."""
    try:
        with ZipFile(archive) as opened:
            members = {PurePosixPath(member).name: member for member in opened.namelist()}
            for name in names:
                if name not in members:
                    raise InputError(f"{archive} has no {name}")
                with opened.open(members[name]) as packed, open(directory / name, "wb") as file:
                    shutil.copyfileobj(packed, file)
    except FileNotFoundError:
        raise InputError(f"there is no {archive}") from None
    except (BadZipFile, EOFError, zlib.error) as error:
        raise InputError(f"{archive} is not a whole zip archive ({error})") from None
