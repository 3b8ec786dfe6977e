"""Threads, quiet imports and measurements of the process.

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
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "FLAGS_paddle_num_threads")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of this container: microseconds, and of how many
_LOCAL_PROCESSES = ("PADDLE_LOCAL_SIZE", "LOCAL_WORLD_SIZE")  # of Paddle's launcher, of torchrun


def configure(threads: int | None = None) -> None:
    """Set up the environment for Paddle or PyTorch, before it is imported.

    `threads` is the number of CPU threads of this process; without it, what the user has set in
    the environment counts, else the usable cores, shared among the local processes of
    `paddle.distributed.launch` or `torchrun`. Without effect on threads once Paddle is imported.
    """
    _drop_launcher_threads()
    if threads is not None:
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    given = (os.environ[v] for v in THREAD_VARIABLES if v in os.environ)
    chosen = next(given, str(default_threads())).partition(",")[0]  # OpenMP: one for each level
    for variable in THREAD_VARIABLES:
        os.environ.setdefault(variable, chosen)
    # OpenMP's idle threads would spin for 200 ms on cores that NumPy's part of the work wants.
    os.environ.setdefault("KMP_BLOCKTIME", "1")
    if _is_amd():
        # The MKL inside Paddle's wheel takes its slow generic path on AMD unless told otherwise.
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    _keep_freed_memory()


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
    """CPU threads that `configure` or the user gave the framework, else `default_threads`."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(given) if given.isdigit() and int(given) else default_threads()


def default_threads() -> int:
    """Usable cores, or a container's quota of them, divided among a launcher's local processes."""
    cores = os.cpu_count() or 1
    with contextlib.suppress(AttributeError):  # macOS has no affinity
        cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max" for no quota
        quota, period = map(int, CPU_QUOTA.read_text().split())
        cores = min(cores, quota // period)
    return max(1, cores // _local_processes())


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
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _Muted:
    """A stream that is silent for a while; loggers made meanwhile keep it, and need it later."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.silent = stream, True

    def write(self, text: str) -> int:
        return len(text) if self.silent else self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _local_processes() -> int:
    return max(1, *(int(os.environ.get(variable, "1")) for variable in _LOCAL_PROCESSES))


def _drop_launcher_threads() -> None:
    # The launchers export OMP_NUM_THREADS=1 when it is unset; the processes that they start
    # inherit that as if the user had asked for one thread.
    launched = any(variable in os.environ for variable in _LOCAL_PROCESSES)
    if launched and os.environ.get("OMP_NUM_THREADS") == "1":
        del os.environ["OMP_NUM_THREADS"]


def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
