"""Work on a CPU's cores by NumPy, one thread a core, on the memory of either framework's tensors.

Frameworks spread each small operation over all cores and send every result through memory; a thread
that takes some rows through several operations keeps them in the cache of one core.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from .environment import cpu_threads
from .tensors import Tensor, namespace

CHUNK = 1 << 16  # numbers that go through several passes together: 256 KiB, a core's own cache


def run(work: Callable[[Any], Any], units: Iterable[Any]) -> list[Any]:
    """``work`` of each unit, in threads; the results in order.

    NumPy's products within keep to their thread. What is not finite is found by who uses it.
    """

    def quietly(unit: Any) -> Any:
        with np.errstate(all="ignore"):
            return work(unit)

    pool, alone = _threads(os.getpid())
    with alone, _libraries().limit(limits=1):
        return list(pool.map(quietly, units))


def array(x: Tensor) -> np.ndarray:
    """A host tensor's memory as float32, without a copy where it is that already."""
    return np.from_dlpack(x.detach().float())


def tensor(x: np.ndarray, like: Tensor) -> Tensor:
    """An array as a tensor of ``like``'s framework, without a copy."""
    return namespace(like).utils.dlpack.from_dlpack(x)


@lru_cache(maxsize=1)
def _libraries() -> ThreadpoolController:
    return ThreadpoolController().select(internal_api="openblas")


@lru_cache(maxsize=1)
def _threads(process: int) -> tuple[ThreadPoolExecutor, Lock]:
    """This process's own, which do not come along into a fork, and a lock for who uses them.

    The limit on NumPy's products is the process's: of two calls that overlap, the second would
    take the first one's limit for the one to go back to.
    """
    return ThreadPoolExecutor(cpu_threads()), Lock()
