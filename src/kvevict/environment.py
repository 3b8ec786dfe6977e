"""What the environment says, quiet imports, and measurements of the process.

Every variable that the project reads as a number is read here: it may be unset or empty, and is
refused by name where it is no such number.

Frameworks read their thread counts once, while they are imported: :mod:`kvevict.backends` calls
:func:`configure` before it imports one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import sys
import tempfile
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

from .errors import InputError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "FLAGS_paddle_num_threads")
MOST_THREADS = 1024  # more are a slip, and keep libraries from starting
CGROUP = Path("/sys/fs/cgroup")  # of this container
CPU_QUOTA = CGROUP / "cpu.max"  # microseconds, and of how many
_LOCAL_PROCESSES = ("PADDLE_LOCAL_SIZE", "LOCAL_WORLD_SIZE")  # of Paddle's launcher, of torchrun
# The first of these numbers counts: OpenMP takes one for each level, Paddle one for each card.
_LISTS = (*THREAD_VARIABLES, "FLAGS_selected_gpus")
# What says where a library keeps files, and where it does below the home directory otherwise.
_HOMES = {
    "PPNLP_HOME": ".paddlenlp/packages",  # made, with two more, when PaddleNLP is imported
    "MPLCONFIGDIR": ".config/matplotlib",
    "TRITON_CACHE_DIR": ".triton/cache",
}


def integer(name: str, default: int, least: int = 0, most: int = 2**31 - 1) -> int:
    """A whole number from the environment; ``default`` where the variable is unset or empty.

    Raises:
        InputError: it is something else, or not from ``least`` to ``most``.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    number = text.partition(",")[0] if name in _LISTS else text
    if not re.fullmatch(r"[+-]?[0-9]{1,10}", number) or not least <= int(number) <= most:
        raise InputError(
            f"the environment variable {name} is {os.environ[name]!r}, where a whole number from "
            f"{least} to {most} is needed; unset it, or correct it"
        )
    return int(number)


def configure(threads: int | None = None) -> None:
    """Set up the environment for Paddle or PyTorch, before it is imported.

    Args:
        threads: CPU threads of this process; without it, what the user has set in the environment
            counts, else the usable cores, shared among the local processes of
            ``paddle.distributed.launch`` or ``torchrun``. Without effect once Paddle is imported.

    Raises:
        InputError: a variable that is to hold a number of threads or of processes holds none.
    """
    _drop_launcher_threads()
    given = {name: integer(name, 0, least=1, most=MOST_THREADS) for name in THREAD_VARIABLES}
    chosen = threads or next(filter(None, given.values()), 0) or default_threads()
    for variable in THREAD_VARIABLES:
        if threads or not given[variable]:
            os.environ[variable] = str(chosen)
    if os.environ.get("LOCAL_RANK"):  # of torchrun, in the word that Paddle reads
        os.environ.setdefault("FLAGS_selected_gpus", str(local_gpu()))
    # OpenMP's idle threads would spin on cores that NumPy's part of the work, or another process,
    # wants: Intel's, which Paddle has, for 200 ms; GNU's, which PyTorch has, for 300,000 rounds.
    os.environ.setdefault("KMP_BLOCKTIME", "1")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if _is_amd():
        # The MKL inside Paddle's wheel takes its slow generic path on AMD unless told otherwise.
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    provide_homes()
    _keep_freed_memory()


def provide_homes() -> None:
    """Let libraries that keep files in the home directory work where there is none to write to.

    What they keep there is for their own convenience; they get a directory that goes with the
    process.
    """
    for variable, below in _HOMES.items():
        if os.environ.get(variable):
            continue
        os.environ.pop(variable, None)
        place = Path(os.path.expanduser(f"~/{below}"))
        only_read = variable == "PPNLP_HOME" and place.is_dir()
        if not only_read and not _can_be_written(place):
            os.environ[variable] = os.path.join(_scratch().name, variable)


def _keep_freed_memory() -> None:
    """Let glibc reuse freed blocks of up to 32 MiB instead of returning each to the system.

    Paddle allocates every result anew. By default each large one is a fresh mapping whose pages
    the kernel zeroes on first touch: an element-wise product of 16 MB took 7 ms instead of 0.7.
    """
    mmap_threshold, trim_threshold = -3, -1  # mallopt's names for them
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 2**31 - 1)


def cpu_threads() -> int:
    """CPU threads that ``configure`` or the user gave the process, else ``default_threads``.

    Attention on a CPU takes this many.
    """
    return integer(THREAD_VARIABLES[0], 0, least=1, most=MOST_THREADS) or default_threads()


def default_threads() -> int:
    """Usable cores, or a container's quota of them, divided among a launcher's local processes."""
    cores = os.cpu_count() or 1
    with contextlib.suppress(AttributeError):  # macOS has no affinity
        cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max" for no quota
        quota, period = map(int, CPU_QUOTA.read_text().split())
        cores = min(cores, quota // period)
    local = (integer(variable, 1, least=1) for variable in _LOCAL_PROCESSES)
    return max(1, cores // max(local))


def local_gpu() -> int:
    """The GPU of this process: that of Paddle's launcher, or of its number under torchrun; or 0."""
    return integer("FLAGS_selected_gpus", integer("LOCAL_RANK", 0))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop warnings and what Python code prints to stderr. For imports only: errors still raise."""
    muted = _Muted(sys.stderr)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(muted):
            warnings.simplefilter("ignore")
            yield
    finally:
        muted.silent = False


def peak_process_bytes() -> int:
    """Largest resident set that this process has had so far, in bytes."""
    with contextlib.suppress(OSError, TypeError):
        # Unlike getrusage, this does not start from the peak of the process that started ours.
        return _number(Path("/proc/self/status"), r"VmHWM:\s+(\d+) kB") * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_host_bytes() -> int | None:
    """Memory that Linux says is available, within a container's limit; None elsewhere."""
    with contextlib.suppress(OSError, TypeError):
        free = _number(Path("/proc/meminfo"), r"MemAvailable:\s+(\d+) kB") * 1024
        with contextlib.suppress(OSError, TypeError, ValueError):  # no limit, or no such files
            limit, held = (
                int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current")
            )
            free = min(free, limit - held + _number(CGROUP / "memory.stat", r"inactive_file (\d+)"))
        return free
    return None


def _number(file: Path, pattern: str) -> int:
    """What stands in a file where ``pattern`` has its group; a TypeError if it does not match."""
    return int(re.search(pattern, file.read_text(encoding="utf-8"))[1])


class _Muted:
    """A stream that is silent for a while; loggers made meanwhile keep it, and need it later."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.silent = stream, True

    def write(self, text: str) -> int:
        return len(text) if self.silent or self.stream is None else self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _drop_launcher_threads() -> None:
    # The launchers export OMP_NUM_THREADS=1 when it is unset; the processes that they start
    # inherit that as if the user had asked for one thread.
    launched = any(map(os.environ.get, _LOCAL_PROCESSES))
    if launched and os.environ.get("OMP_NUM_THREADS") == "1":
        del os.environ["OMP_NUM_THREADS"]


def _can_be_written(place: Path) -> bool:
    """Whether a directory, or what is there of it, is this process's to write to."""
    while not place.exists() and place != place.parent:
        place = place.parent
    return place.is_absolute() and place.is_dir() and os.access(place, os.W_OK | os.X_OK)


@lru_cache(maxsize=1)
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="kvevict-")


def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
