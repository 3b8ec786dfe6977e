"""The user's cache of models: directories that are made once, whichever process comes first."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvevict.errors import InputError

_ELSEWHERE = "set KVEVICT_CACHE to a directory that can be written and has room"


def cache_dir() -> Path:
    """KVEVICT_CACHE, else XDG_CACHE_HOME/kvevict, else ~/.cache/kvevict; it need not exist."""
    chosen, users = os.environ.get("KVEVICT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(chosen or Path(users or "~/.cache", "kvevict")).expanduser()
    except RuntimeError as error:  # no HOME, and no user of this number
        raise InputError(f"there is no home directory to keep models in: {_ELSEWHERE}") from error


def made_once(
    name: str,
    make: Callable[[Path, Path], None],
    needed: int,
    is_current: Callable[[Path], bool] = Path.is_dir,
) -> Path:
    """The directory ``name`` of the cache, made first if it is not there.

    Args:
        name: of the directory.
        make: called with the empty directory to fill, and with one for its own use. Files that it
            leaves in the second when it breaks off are there at the next attempt.
        needed: bytes of disk that it takes, less what an attempt before has left.
        is_current: whether a directory that is there will do.

    Raises:
        InputError: the cache cannot be written or lacks room, or what ``make`` raises.
    """
    cache = cache_dir()
    target, work = cache / name, cache / f".{name}"
    if is_current(target):
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache, name):
            if not is_current(target):
                try:
                    _make(target, work, make, needed)
                finally:
                    _clear(work)
    except OSError as error:
        raise InputError(
            f"{cache} cannot be written ({error.strerror or error}): {_ELSEWHERE}"
        ) from error
    return target


def remove(pattern: str) -> int:
    """Take the directories that match ``pattern`` out of the cache, finished or not.

    Returns:
        The bytes that this freed.

    Raises:
        InputError: another process is making one of them, or they cannot be removed.
    """
    freed = 0
    for directory in (path for p in (pattern, f".{pattern}") for path in cache_dir().glob(p)):
        if directory.is_dir():
            freed += disk_bytes(directory)
            try:
                with _alone(directory.parent, directory.name.lstrip("."), wait=False):
                    shutil.rmtree(directory)
            except OSError as error:
                raise InputError(f"{directory} cannot be removed ({error.strerror})") from error
    return freed


def disk_bytes(directory: Path) -> int:
    """What the files below ``directory`` take."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def _make(target: Path, work: Path, make: Callable[[Path, Path], None], needed: int) -> None:
    work.mkdir(exist_ok=True)
    _clear(work)  # of a process that was killed
    work.mkdir(exist_ok=True)
    missing, free = needed - disk_bytes(work), shutil.disk_usage(work).free
    if missing > free:
        raise InputError(
            f"{target.name} takes another {missing / 1e9:.1f} GB in {target.parent}, which has "
            f"{free / 1e9:.1f} GB: {_ELSEWHERE}"
        )
    made = work / "made"
    made.mkdir()
    make(made, work)
    if target.exists():
        target.rename(work / "outdated")
    made.rename(target)


def _clear(work: Path) -> None:
    """Remove what no later attempt goes on with: directories, and files without content."""
    for path in list(work.iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.stat().st_size:
            path.unlink()
    with suppress(OSError):  # not empty
        work.rmdir()


@contextmanager
def _alone(cache: Path, name: str, wait: bool = True) -> Iterator[None]:
    """No other process makes or removes ``name`` meanwhile, where the file system knows locks."""
    path = cache / f".{name}.lock"
    while True:
        with path.open("w") as lock:
            _lock(lock.fileno(), name, wait)
            if _is(path, lock.fileno()):
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return


def _lock(descriptor: int, name: str, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise InputError(f"another process is making {name}") from None
        print(f"waiting for another process that makes {name}", file=sys.stderr)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:  # no locks here: two processes at once would do the work twice
        return


def _is(path: Path, descriptor: int) -> bool:
    """Whether ``path`` still names that file: whoever had the lock before may have removed it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
